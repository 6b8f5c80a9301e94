//! How many calls a crowd costs, and that everyone gets an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::*;
use crate::aws::fake::{Call, FakeCloud, Fault, id, instance, place};

fn lookups(cloud: &Arc<FakeCloud>) -> Lookups {
    Lookups::new(cloud.clone(), LookupLimits::default())
}

fn by_id(n: usize) -> TargetQuery {
    TargetQuery::Id(id(n))
}

fn by_tag(key: &str, value: &str) -> TargetQuery {
    TargetQuery::Tags(BTreeMap::from([(key.into(), value.into())]))
}

/// The number of ids in each call.
fn batches(cloud: &FakeCloud) -> Vec<usize> {
    let sizes = cloud.calls().into_iter().map(|call| match call {
        Call::Ids(ids) => ids.len(),
        Call::Tags(_) | Call::Endpoints(_) | Call::Push(_) => 1,
    });
    sizes.collect()
}

async fn find_all(
    lookups: &Lookups,
    queries: impl IntoIterator<Item = TargetQuery>,
) -> Vec<Result<Vec<Instance>, Failure>> {
    let place = place();
    join_all(queries.into_iter().map(|query| lookups.find(&place, query, false))).await
}

#[tokio::test(start_paused = true)]
async fn a_thousand_questions_at_once_are_five_calls() {
    let cloud = Arc::new(FakeCloud::with(100, (0..1000).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let start = Instant::now();
    let found = find_all(&lookups, (0..1000).map(by_id)).await;
    for (n, answer) in found.into_iter().enumerate() {
        assert_eq!(answer.unwrap()[0].id, id(n));
    }
    assert_eq!(batches(&cloud), [200; 5]);
    assert_eq!(cloud.in_flight_max(), 2);
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tasks_at_once_are_at_most_six_calls() {
    let cloud = Arc::new(FakeCloud::with(100, (0..1000).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let tasks = (0..1000).map(|n| {
        let lookups = lookups.clone();
        tokio::spawn(async move { lookups.find(&place(), by_id(n), false).await })
    });
    for (n, answer) in join_all(tasks.collect::<Vec<_>>()).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().unwrap()[0].id, id(n));
    }
    let calls = cloud.calls().len();
    assert!(calls <= 6, "{calls} calls of {:?} ids", batches(&cloud));
}

#[tokio::test(start_paused = true)]
async fn who_can_wait_waits_for_company_and_takes_no_place_of_those_who_cannot() {
    let cloud = Arc::new(FakeCloud::with(100, (0..1100).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let here = place();
    let start = Instant::now();
    let alone = lookups.find(&here, by_id(0), true);
    assert_eq!(alone.await.unwrap()[0].id, id(0));
    assert_eq!(start.elapsed(), LookupLimits::default().linger_of_refreshes + Duration::from_millis(100));
    // A crowd of a thousand, and a hundred that can wait before it.
    let refreshes = join_all((1000..1100).map(|n| lookups.find(&here, by_id(n), true)));
    let crowd = join_all((0..1000).map(|n| lookups.find(&here, by_id(n), false)));
    let (refreshes, crowd) = futures::join!(refreshes, crowd);
    assert!(refreshes.iter().chain(&crowd).all(Result::is_ok));
    assert_eq!(batches(&cloud)[1..], [200, 200, 200, 200, 200, 100]);
    assert_eq!(lookups.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn who_can_wait_comes_along_with_who_cannot() {
    let cloud = Arc::new(FakeCloud::with(100, (0..9).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let here = place();
    let start = Instant::now();
    let refreshes = join_all((0..8).map(|n| lookups.find(&here, by_id(n), true)));
    // One of them is asked for by somebody who waits, too.
    let urgent = join_all([8, 3].map(|n| lookups.find(&here, by_id(n), false)));
    let (refreshes, urgent) = futures::join!(refreshes, urgent);
    assert!(refreshes.iter().chain(&urgent).all(Result::is_ok));
    assert_eq!((batches(&cloud), start.elapsed()), (vec![9], Duration::from_millis(100)));
    // Nothing is left of the one that stood in both places.
    lookups.find(&here, by_id(3), true).await.unwrap();
    assert_eq!(batches(&cloud), [9, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_crowd_without_end_does_not_keep_out_who_can_wait() {
    let cloud = Arc::new(FakeCloud::with(1, (0..1).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let here = place();
    let start = Instant::now();
    let ask = |ids: std::ops::Range<usize>| {
        for n in ids {
            let (lookups, here) = (lookups.clone(), here.clone());
            tokio::spawn(async move { lookups.find(&here, by_id(n), false).await });
        }
    };
    // A queue that the first burst does not empty, and then more than the rate lets through.
    let crowd = async {
        ask(1..10_000);
        for wave in 0..80 {
            let first = 10_000 + wave * 600;
            ask(first..first + 600);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (answer, ()) = futures::join!(async { (lookups.find(&here, by_id(0), true).await, start.elapsed()) }, crowd);
    let (answer, elapsed) = answer;
    assert_eq!(answer.unwrap()[0].id, id(0));
    assert!(elapsed > Duration::from_secs(25) && elapsed < Duration::from_secs(35), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn one_question_leaves_at_once() {
    let cloud = Arc::new(FakeCloud::with(100, [instance(1, &[])]));
    let start = Instant::now();
    let found = lookups(&cloud).find(&place(), by_id(1), false).await.unwrap();
    assert_eq!(found, [instance(1, &[])]);
    assert_eq!(start.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_question_close_behind_another_waits_for_a_gap_and_no_longer() {
    let cloud = Arc::new(FakeCloud::with(100, [instance(1, &[]), instance(2, &[])]));
    let lookups = lookups(&cloud);
    let first = tokio::spawn({
        let lookups = lookups.clone();
        async move { lookups.find(&place(), by_id(1), false).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    let start = Instant::now();
    lookups.find(&place(), by_id(2), false).await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(132), "{:?}", start.elapsed());
    first.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_comes_over_seconds_is_six_calls_and_nobody_waits_long() {
    let cloud = Arc::new(FakeCloud::with(5, (0..1000).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let tasks = (0..1000).map(|n| {
        let lookups = lookups.clone();
        tokio::spawn(async move {
            // As fast as an API server on two cores lets them in, and in clumps, as it tells of them.
            tokio::time::sleep(Duration::from_millis(80) * u32::try_from(n / 20).unwrap()).await;
            let start = Instant::now();
            let answer = lookups.find(&place(), by_id(n), false).await;
            (answer, start.elapsed())
        })
    });
    for (n, done) in join_all(tasks.collect::<Vec<_>>()).await.into_iter().enumerate() {
        let (answer, elapsed) = done.unwrap();
        assert_eq!(answer.unwrap()[0].id, id(n));
        assert!(elapsed < Duration::from_millis(1010), "{elapsed:?}");
    }
    assert_eq!(batches(&cloud), [20, 200, 200, 200, 200, 180]);
}

#[tokio::test(start_paused = true)]
async fn questions_that_come_as_fast_as_calls_may_leave_do_not_wait() {
    let cloud = Arc::new(FakeCloud::with(5, (0..10).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    for n in 0..10 {
        let start = Instant::now();
        lookups.find(&place(), by_id(n), false).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(5));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_steady_stream_waits_a_second_at_most() {
    let cloud = Arc::new(FakeCloud::with(5, (0..300).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let tasks = (0..300).map(|n| {
        let lookups = lookups.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20) * u32::try_from(n).unwrap()).await;
            let start = Instant::now();
            lookups.find(&place(), by_id(n), false).await.unwrap();
            start.elapsed()
        })
    });
    let longest = join_all(tasks.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).max().unwrap();
    assert!(longest <= Duration::from_millis(1010), "{longest:?}");
    assert!(batches(&cloud).len() <= 8, "{:?}", batches(&cloud));
}

#[tokio::test(start_paused = true)]
async fn the_same_id_is_asked_for_once() {
    let cloud = Arc::new(FakeCloud::with(100, [instance(7, &[])]));
    let found = find_all(&lookups(&cloud), (0..500).map(|_| by_id(7))).await;
    assert!(found.into_iter().all(|answer| answer.unwrap() == [instance(7, &[])]));
    assert_eq!(batches(&cloud), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_absent_id_is_an_empty_answer_and_spoils_no_other() {
    let cloud = Arc::new(FakeCloud::with(100, [instance(1, &[])]));
    let found = find_all(&lookups(&cloud), [by_id(1), by_id(2)]).await;
    assert_eq!(found, [Ok(vec![instance(1, &[])]), Ok(vec![])]);
    assert_eq!(batches(&cloud), [2]);
}

#[tokio::test(start_paused = true)]
async fn all_who_share_a_call_share_its_error() {
    let cloud = Arc::new(FakeCloud::with(100, []));
    cloud.fail(1, FailureClass::Refused, "UnauthorizedOperation");
    let lookups = lookups(&cloud);
    for answer in find_all(&lookups, (0..150).map(by_id)).await {
        assert_eq!(answer.unwrap_err().code, "UnauthorizedOperation");
    }
    assert_eq!(find_all(&lookups, [by_id(1)]).await, [Ok(vec![])]);
    let stats = lookups.stats();
    assert_eq!((stats.refused, stats.answered, stats.failed, stats.calls), (1, 1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn the_same_tags_under_way_are_one_call_and_different_ones_are_two() {
    let web = instance(1, &[("Name", "web"), ("env", "dev")]);
    let cloud = Arc::new(FakeCloud::with(100, [web.clone(), instance(2, &[("Name", "db")])]));
    let lookups = lookups(&cloud);
    let early = tokio::spawn({
        let lookups = lookups.clone();
        async move { lookups.find(&place(), by_tag("Name", "web"), false).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let found = find_all(&lookups, [by_tag("Name", "web"), by_tag("Name", "web"), by_tag("Name", "none")]).await;
    assert_eq!(found, [Ok(vec![web.clone()]), Ok(vec![web.clone()]), Ok(vec![])]);
    assert_eq!(early.await.unwrap(), Ok(vec![web]));
    assert_eq!(cloud.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_tags_at_all_are_refused_and_not_every_instance() {
    let cloud = Arc::new(FakeCloud::with(100, [instance(1, &[])]));
    let refusal = lookups(&cloud).find(&place(), TargetQuery::Tags(BTreeMap::new()), false).await.unwrap_err();
    assert_eq!(refusal.class, FailureClass::Invalid);
    assert!(cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn ids_and_tags_take_turns() {
    let cloud = Arc::new(FakeCloud::with(100, []));
    let ids = (0..1000).map(by_id);
    let tags = (0..20).map(|n| by_tag("n", &n.to_string()));
    find_all(&lookups(&cloud), ids.chain(tags)).await;
    let kinds: Vec<bool> = cloud.calls().iter().map(|call| matches!(call, Call::Ids(_))).collect();
    assert_eq!(kinds[..10], [true, false, true, false, true, false, true, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn calls_stay_below_the_rate() {
    let cloud = Arc::new(FakeCloud::with(10, []));
    let start = Instant::now();
    find_all(&lookups(&cloud), (0..70).map(|n| by_tag("n", &n.to_string()))).await;
    // 20 at once, then 5 a second.
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_secs(9) && elapsed < Duration::from_secs(12), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_throttled_call_the_next_one_waits() {
    let cloud = Arc::new(FakeCloud::with(10, []));
    cloud.fail(1, FailureClass::Throttled, "RequestLimitExceeded");
    let lookups = lookups(&cloud);
    assert_eq!(lookups.find(&place(), by_id(1), false).await.unwrap_err().class, FailureClass::Throttled);
    let start = Instant::now();
    lookups.find(&place(), by_id(1), false).await.unwrap();
    assert!(start.elapsed() > Duration::from_millis(180), "{:?}", start.elapsed());
    assert_eq!(lookups.stats().throttled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_disturbs_nobody_and_is_not_asked_for() {
    let cloud = Arc::new(FakeCloud::with(100, (0..10).map(|n| instance(n, &[]))));
    let lookups = lookups(&cloud);
    let here = place();
    let gone: Vec<_> = (0..9).map(|n| Box::pin(lookups.find(&here, by_id(n), false))).collect();
    let mut stays = Box::pin(lookups.find(&here, by_id(9), false));
    let mut gone = join_all(gone);
    futures::future::poll_immediate(&mut gone).await;
    assert!(futures::future::poll_immediate(&mut stays).await.is_none());
    drop(gone);
    assert_eq!(stays.await, Ok(vec![instance(9, &[])]));
    assert_eq!(cloud.calls(), [Call::Ids(vec![id(9)])]);
    assert_eq!(lookups.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_or_panics_is_an_answer_too() {
    let cloud = Arc::new(FakeCloud::with(10, []));
    locked(&cloud.faults).extend([Fault::Hangs, Fault::Panics, Fault::Panics]);
    let lookups = lookups(&cloud);
    let timeout = lookups.find(&place(), by_id(1), false).await.unwrap_err();
    assert_eq!((timeout.class, timeout.code.as_str()), (FailureClass::Retry, class::TIMEOUT));
    assert_eq!(lookups.find(&place(), by_id(1), false).await.unwrap_err().code, class::CALL_LOST);
    assert_eq!(lookups.find(&place(), by_tag("a", "b"), false).await.unwrap_err().code, class::CALL_LOST);
    assert_eq!(lookups.find(&place(), by_tag("a", "b"), false).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_the_next_one_away() {
    let cloud = Arc::new(FakeCloud::with(100, []));
    let limits = LookupLimits { waiting_max: 10, ..LookupLimits::default() };
    let lookups = Lookups::new(cloud.clone(), limits);
    let found = find_all(&lookups, (0..12).map(by_id)).await;
    let turned_away: Vec<_> = found.into_iter().filter_map(Result::err).collect();
    assert_eq!(turned_away.len(), 2);
    assert!(turned_away.iter().all(|it| (it.class, it.code.as_str()) == (FailureClass::Throttled, class::QUEUE_FULL)));
    assert_eq!((lookups.stats().turned_away, lookups.stats().waiting), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_remembered_for_half_a_minute() {
    let endpoint =
        Endpoint { id: "eice-1".into(), vpc_id: "vpc-1".into(), subnet_id: "s".into(), dns_name: "d".into() };
    let cloud = Arc::new(FakeCloud { endpoints: vec![endpoint.clone()], ..FakeCloud::with(10, []) });
    cloud.fail(1, FailureClass::Retry, "InternalError");
    let lookups = lookups(&cloud);
    let here = place();
    lookups.endpoints(&here, "vpc-1").await.unwrap_err();
    let crowd = join_all((0..50).map(|_| lookups.endpoints(&here, "vpc-1"))).await;
    assert!(crowd.into_iter().all(|answer| answer == Ok(vec![endpoint.clone()])));
    assert_eq!(lookups.endpoints(&here, "vpc-1").await, Ok(vec![endpoint]));
    assert_eq!(cloud.calls().len(), 2, "an error is not remembered, an answer is");
    tokio::time::sleep(Duration::from_secs(31)).await;
    lookups.endpoints(&here, "vpc-1").await.unwrap();
    assert_eq!(cloud.calls().len(), 3);
}
