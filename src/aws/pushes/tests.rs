//! Order, pace, and that nothing leaves which may not.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::future::{join_all, poll_immediate};
use jiff::SignedDuration;
use tokio::time::Instant;

use super::*;
use crate::aws::fake::{Call, FakeCloud, Fault, clock, epoch, id, permit};

struct World {
    cloud: Arc<FakeCloud>,
    pushes: Pushes,
    /// A step of the wall clock alone.
    step: Arc<Mutex<Duration>>,
    ours: Arc<AtomicBool>,
}

fn world(latency_ms: u64, limits: PushLimits) -> World {
    let cloud = Arc::new(FakeCloud::with(latency_ms, []));
    let (step, ours) = (Arc::<Mutex<Duration>>::default(), Arc::new(AtomicBool::new(true)));
    let fence = ours.clone();
    let pushes =
        Pushes::new(cloud.clone(), limits, clock(step.clone()), Arc::new(move || fence.load(Ordering::Relaxed)));
    World { cloud, pushes, step, ours }
}

fn after(seconds: i64) -> Timestamp {
    epoch() + SignedDuration::from_secs(seconds)
}

/// The instances that were pushed to, in order.
fn pushed(cloud: &FakeCloud) -> Vec<usize> {
    let order = cloud.calls().into_iter().map(|call| match call {
        Call::Push(instance_id) => (0..1000).find(|n| id(*n) == instance_id).unwrap(),
        Call::Ids(_) | Call::Tags(_) | Call::Endpoints(_) => unreachable!("only pushes here"),
    });
    order.collect()
}

#[tokio::test(start_paused = true)]
async fn a_push_comes_back_with_its_id_and_the_time_of_the_answer() {
    let world = world(250, PushLimits::default());
    let delivered = world.pushes.push(permit(3, after(60))).await.unwrap();
    assert_eq!(delivered.request_id, format!("request-of-{}", id(3)));
    assert_eq!(delivered.answer_time, epoch() + SignedDuration::from_millis(250));
}

#[tokio::test(start_paused = true)]
async fn the_earliest_deadline_leaves_first_and_of_equals_the_first_come() {
    let world = world(10, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    let deadlines = [(0, 90), (1, 30), (2, 60), (3, 30), (4, 31)];
    let all = deadlines.map(|(n, seconds)| world.pushes.push(permit(n, after(seconds))));
    assert!(join_all(all).await.into_iter().all(|outcome| outcome.is_ok()));
    assert_eq!(pushed(&world.cloud), [1, 3, 4, 2, 0]);
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_late_but_ends_early_overtakes_those_that_wait() {
    let world = world(100, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    let crowd = join_all((0..10).map(|n| world.pushes.push(permit(n, after(600)))));
    let urgent = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        world.pushes.push(permit(99, after(5))).await
    };
    let (_, outcome) = tokio::join!(crowd, urgent);
    outcome.unwrap();
    assert_eq!(pushed(&world.cloud)[..4], [0, 1, 99, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_ran_out_is_never_sent() {
    let world = world(10, PushLimits::default());
    let late = world.pushes.push(permit(1, epoch() - SignedDuration::from_secs(1))).await.unwrap_err();
    assert_eq!(late, PushError::TooLate { not_after: epoch() - SignedDuration::from_secs(1) });
    assert_eq!(late.class(), None);
    assert!(world.cloud.calls().is_empty());
    // The last moment itself is still good.
    world.pushes.push(permit(2, after(0))).await.unwrap();
    assert_eq!(pushed(&world.cloud), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_runs_out_in_the_queue_is_never_sent_and_costs_no_token() {
    let world = world(1000, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    let outcomes = join_all((0..5).map(|n| world.pushes.push(permit(n, after(2))))).await;
    let sent: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(sent, [true, true, true, false, false], "{outcomes:?}");
    assert_eq!(world.pushes.stats().too_late, 2);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_ahead_is_believed() {
    let world = world(10, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    let first = world.pushes.push(permit(0, after(30)));
    let second = world.pushes.push(permit(1, after(3600)));
    let step = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        *locked(&world.step) = Duration::from_secs(7200);
    };
    let (first, second, ()) = tokio::join!(first, second, step);
    first.unwrap();
    assert!(matches!(second, Err(PushError::TooLate { .. })), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fenced_push_is_never_sent() {
    let world = world(10, PushLimits::default());
    world.ours.store(false, Ordering::Relaxed);
    assert_eq!(world.pushes.push(permit(0, after(60))).await, Err(PushError::Fenced));
    assert!(world.cloud.calls().is_empty());
    world.ours.store(true, Ordering::Relaxed);
    world.pushes.push(permit(0, after(60))).await.unwrap();
    assert_eq!((world.pushes.stats().fenced, world.pushes.stats().calls), (1, 1));
}

/// A cloud that takes its time before it asks the gate, as one does that fetches credentials first.
struct SlowToStart {
    then: Box<dyn Fn() + Send + Sync>,
    sent: AtomicBool,
}

impl Cloud for SlowToStart {
    fn describe_by_ids<'a>(
        &'a self,
        _: &'a Place,
        _: &'a [crate::domain::cloud::InstanceId],
    ) -> crate::aws::Reply<'a, Vec<crate::domain::cloud::Instance>> {
        unreachable!("only pushes here")
    }

    fn describe_by_tags<'a>(
        &'a self,
        _: &'a Place,
        _: &'a BTreeMap<String, String>,
    ) -> crate::aws::Reply<'a, Vec<crate::domain::cloud::Instance>> {
        unreachable!("only pushes here")
    }

    fn describe_endpoints<'a>(
        &'a self,
        _: &'a Place,
        _: &'a str,
    ) -> crate::aws::Reply<'a, Vec<crate::domain::cloud::Endpoint>> {
        unreachable!("only pushes here")
    }

    fn send_ssh_public_key<'a>(
        &'a self,
        _: &'a crate::domain::push::KeyPush,
        gate: Gate,
    ) -> crate::aws::Reply<'a, crate::aws::Pushed> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            (self.then)();
            if !gate() {
                return Err(failure(FailureClass::Bug, "GateShut", "the gate was shut"));
            }
            self.sent.store(true, Ordering::Relaxed);
            Err(failure(FailureClass::Retry, class::DISPATCH_FAILURE, "reset"))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn time_lost_on_the_way_to_the_wire_is_counted() {
    for (seconds, step, ours, expected) in [
        (1, 0, true, Some(PushError::TooLate { not_after: after(1) })),
        (600, 3600, true, Some(PushError::TooLate { not_after: after(600) })),
        (600, 0, false, Some(PushError::Fenced)),
        (600, 0, true, None),
    ] {
        let offset = Arc::<Mutex<Duration>>::default();
        let fence = Arc::new(AtomicBool::new(true));
        let then = {
            let (offset, fence) = (offset.clone(), fence.clone());
            Box::new(move || {
                *locked(&offset) = Duration::from_secs(step);
                fence.store(ours, Ordering::Relaxed);
            })
        };
        let cloud = Arc::new(SlowToStart { then, sent: AtomicBool::new(false) });
        let fence = Arc::new(move || fence.load(Ordering::Relaxed));
        let pushes = Pushes::new(cloud.clone(), PushLimits::default(), clock(offset), fence);
        let error = pushes.push(permit(0, after(seconds))).await.unwrap_err();
        assert_eq!(cloud.sent.load(Ordering::Relaxed), expected.is_none());
        match expected {
            Some(expected) => assert_eq!(error, expected),
            None => assert!(matches!(error, PushError::Failed { unsure_time: Some(_), .. }), "{error:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_push_is_never_sent() {
    let world = world(100, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    let mut first = Box::pin(world.pushes.push(permit(0, after(60))));
    let mut second = Box::pin(world.pushes.push(permit(1, after(60))));
    assert!(poll_immediate(&mut first).await.is_none() && poll_immediate(&mut second).await.is_none());
    drop(second);
    first.await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(pushed(&world.cloud), [0]);
    assert_eq!((world.pushes.stats().withdrawn, world.pushes.stats().waiting), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn pushes_keep_to_the_pace_and_to_the_number_at_once() {
    let limits = PushLimits { rate_per_second_max: 20.0, in_flight_max: 8, ..PushLimits::default() };
    let world = world(100, limits);
    let start = Instant::now();
    let outcomes = join_all((0..120).map(|n| world.pushes.push(permit(n, after(600))))).await;
    assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
    // 20 at once, then 20 a second.
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(4900) && elapsed < Duration::from_millis(5600), "{elapsed:?}");
    assert!(world.cloud.in_flight_max() <= 8);
}

#[tokio::test(start_paused = true)]
async fn throttling_halves_the_pace_and_success_restores_it() {
    let world = world(10, PushLimits { rate_per_second_max: 40.0, ..PushLimits::default() });
    world.cloud.fail(1, FailureClass::Throttled, "ThrottlingException");
    let error = world.pushes.push(permit(0, after(600))).await.unwrap_err();
    assert_eq!(error.class(), Some(FailureClass::Throttled));
    assert!(matches!(error, PushError::Failed { unsure_time: None, .. }), "a clear no: the key is not there");
    assert_eq!(world.pushes.paces().into_values().collect::<Vec<_>>(), [20.0]);
    let start = Instant::now();
    join_all((0..100).map(|n| world.pushes.push(permit(n, after(600))))).await;
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_secs(4) && elapsed < Duration::from_secs(6), "{elapsed:?}");
    let restored = world.pushes.paces().into_values().next().unwrap();
    assert!(restored > 23.0 && restored < 26.0, "{restored}");
}

#[tokio::test(start_paused = true)]
async fn a_push_without_an_answer_ends_in_time_and_leaves_it_open_whether_the_key_is_there() {
    let world = world(0, PushLimits::default());
    locked(&world.cloud.faults).push_back(Fault::Hangs);
    let start = Instant::now();
    let error = world.pushes.push(permit(0, after(60))).await.unwrap_err();
    assert!(start.elapsed() <= PUSH_TIMEOUT + Duration::from_millis(1), "{:?}", start.elapsed());
    let PushError::Failed { failure, unsure_time } = error else { panic!("{error:?}") };
    assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Retry, class::TIMEOUT));
    assert!(unsure_time.unwrap() >= epoch() + SignedDuration::try_from(PUSH_TIMEOUT).unwrap());
    assert_eq!(world.pushes.stats().unsure, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_retried_here() {
    for class in [FailureClass::Retry, FailureClass::Throttled, FailureClass::Refused, FailureClass::Gone] {
        let world = world(10, PushLimits::default());
        world.cloud.fail(1, class, "AsTheTestWantsIt");
        assert_eq!(world.pushes.push(permit(0, after(60))).await.unwrap_err().class(), Some(class));
        assert_eq!(world.cloud.calls().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_is_an_answer_too() {
    let world = world(10, PushLimits { in_flight_max: 1, ..PushLimits::default() });
    locked(&world.cloud.faults).push_back(Fault::Panics);
    let error = world.pushes.push(permit(0, after(60))).await.unwrap_err();
    assert_eq!(error.class(), Some(FailureClass::Bug));
    world.pushes.push(permit(0, after(60))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_the_next_one_away_and_withdrawn_ones_make_room() {
    let limits = PushLimits { waiting_max: 3, in_flight_max: 1, ..PushLimits::default() };
    let world = world(100, limits);
    let mut waiting: Vec<_> = (0..3).map(|n| Box::pin(world.pushes.push(permit(n, after(60))))).collect();
    for push in &mut waiting {
        assert!(poll_immediate(push).await.is_none());
    }
    let full = world.pushes.push(permit(9, after(60))).await.unwrap_err();
    assert_eq!(full.class(), Some(FailureClass::Throttled));
    waiting.pop();
    waiting.push(Box::pin(world.pushes.push(permit(4, after(60)))));
    assert!(join_all(waiting).await.into_iter().all(|outcome| outcome.is_ok()));
    assert_eq!(pushed(&world.cloud), [0, 1, 4]);
}
