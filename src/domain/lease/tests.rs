use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

const LEASE: Duration = Duration::from_secs(9);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn at(ticks: f64) -> Moment {
    Moment { ticks: seconds(ticks), time: super::super::time::plus(Timestamp::UNIX_EPOCH, seconds(1e6 + ticks)) }
}

fn terms(identity: &str) -> Terms {
    Terms { identity: identity.to_owned(), lease: LEASE }
}

fn head(receipt: &str) -> Option<TrailHead> {
    Some(TrailHead { receipt: receipt.to_owned(), file: Some("a".to_owned()) })
}

fn receipt(record: &LeaseRecord) -> Option<&str> {
    record.head.as_ref().map(|head| head.receipt.as_str())
}

fn record(version: u64, holder: Option<&str>) -> LeaseRecord {
    LeaseRecord {
        version: Some(version.to_string()),
        holder: holder.map(str::to_owned),
        duration: LEASE,
        acquire_time: Some(Timestamp::UNIX_EPOCH),
        renew_time: None,
        transitions: 3,
        head: head("41:abc"),
    }
}

/// What the API server would make of a write.
fn stored(written: LeaseRecord, version: u64) -> LeaseRecord {
    LeaseRecord { version: Some(version.to_string()), ..written }
}

fn leader() -> Election {
    let mut election = Election::new(terms("a"));
    election.read(at(0.0), Some(record(1, None)));
    let Step::Write(written) = election.next(at(0.1), None) else { panic!("a free lease is taken") };
    assert_eq!((written.version.as_deref(), written.holder.as_deref()), (Some("1"), Some("a")));
    assert_eq!((written.transitions, receipt(&written)), (4, Some("41:abc")), "the trail's head is handed on");
    assert!(!election.leads(at(0.1)), "before it is stored nobody leads");
    election.wrote(at(0.1), at(0.3), stored(written, 2));
    election
}

#[test]
fn a_leader_leads_for_two_thirds_of_a_lease_from_the_sending_of_its_renewal() {
    for (time, leads) in [(0.3, true), (6.0, true), (6.2, false), (60.0, false)] {
        assert_eq!(leader().leads(at(time)), leads, "{time}");
    }
}

#[test]
fn a_machine_that_was_suspended_does_not_lead_when_it_wakes_although_its_ticks_stood_still() {
    assert!(!leader().leads(Moment { ticks: seconds(0.4), ..at(100.0) }));
    assert!(
        leader().leads(Moment { time: Timestamp::UNIX_EPOCH, ..at(1.0) }),
        "a clock that was set back says nothing"
    );
}

#[test]
fn a_leader_renews_in_time_and_carries_the_trails_head() {
    let mut election = leader();
    assert!(matches!(election.next(at(0.4), None), Step::Wait(_)));
    let Step::Write(written) = election.next(at(1.7), head("50:def")) else { panic!() };
    assert_eq!(receipt(&written), Some("50:def"));
    assert_eq!((written.version.as_deref(), written.transitions), (Some("2"), 4));
    election.wrote(at(1.7), at(1.8), stored(written, 3));
    assert!(election.leads(at(7.6)) && !election.leads(at(7.8)));
}

#[test]
fn a_leader_whose_renewals_fail_is_lost_at_its_deadline_and_for_ever() {
    let mut election = leader();
    election.failed(at(2.0));
    assert!(matches!(election.next(at(2.1), None), Step::Wait(_)));
    assert_eq!(election.next(at(2.5), None), Step::Read, "after a failure nobody knows what is stored");
    assert_eq!(election.next(at(6.2), None), Step::Lost(Loss::Late));
    election.read(at(6.3), Some(record(2, Some("a"))));
    assert_eq!(election.next(at(6.4), None), Step::Lost(Loss::Late));
    assert!(!election.leads(at(0.4)));
}

#[test]
fn a_leader_that_was_late_once_is_lost_although_the_renewal_came_through_after_all() {
    let mut election = leader();
    let Step::Write(written) = election.next(at(1.7), None) else { panic!() };
    assert!(!election.leads(at(6.2)), "whoever asks now leaves something undone");
    election.wrote(at(1.7), at(6.3), stored(written.clone(), 3));
    assert!(!election.leads(at(6.3)));
    // And so is one whom nobody asked meanwhile.
    let mut election = leader();
    election.next(at(1.7), None);
    election.wrote(at(1.7), at(6.3), stored(written, 3));
    assert_eq!(election.next(at(6.4), None), Step::Lost(Loss::Late));
}

#[test]
fn a_length_that_nobody_of_ours_would_write_keeps_nobody_waiting_for_ever() {
    let mut election = Election::new(terms("b"));
    let hostile = LeaseRecord { duration: Duration::from_secs(i32::MAX as u64), ..record(1, Some("x")) };
    election.read(at(0.0), Some(hostile.clone()));
    election.read(at(119.0), Some(hostile.clone()));
    assert!(!matches!(election.next(at(119.5), None), Step::Write(_)));
    election.read(at(120.0), Some(hostile));
    assert!(matches!(election.next(at(120.0), None), Step::Write(_)));
}

#[test]
fn whoever_stands_by_is_ready_if_it_reads_the_lease_and_somebody_leads() {
    let mut election = Election::new(terms("b"));
    assert!(election.why_not_ready(at(0.0)).is_some_and(|why| why.contains("cannot be read")));
    election.read(at(1.0), Some(LeaseRecord { holder: None, acquire_time: None, ..record(1, None) }));
    assert!(election.why_not_ready(at(1.0)).is_some_and(|why| why.contains("nobody leads")));
    election.read(at(2.0), Some(record(2, Some("a"))));
    assert_eq!(election.why_not_ready(at(2.0)), None);
    assert_eq!(election.why_not_ready(at(10.9)), None);
    assert!(election.why_not_ready(at(11.0)).is_some_and(|why| why.contains("cannot be read")));
}

#[test]
fn a_leader_that_sees_another_or_no_lease_at_all_is_lost_at_once() {
    for seen in [Some(record(7, Some("b"))), Some(record(7, None)), None] {
        let mut election = leader();
        election.failed(at(2.0));
        election.read(at(2.5), seen);
        assert!(!election.leads(at(2.5)));
        assert_eq!(election.next(at(2.5), None), Step::Lost(Loss::Taken));
    }
}

#[test]
fn a_lease_is_taken_over_once_it_was_seen_unchanged_for_all_its_time() {
    let mut election = Election::new(terms("b"));
    assert_eq!(election.next(at(0.0), None), Step::Read);
    election.read(at(0.0), Some(record(1, Some("a"))));
    assert_eq!(election.holder(), Some("a"));
    // It is looked at all the time, and each renewal begins its time anew.
    assert!(matches!(election.next(at(0.1), None), Step::Wait(_)));
    assert_eq!(election.next(at(0.6), None), Step::Read);
    election.read(at(5.0), Some(record(2, Some("a"))));
    election.read(at(13.9), Some(record(2, Some("a"))));
    assert_eq!(election.next(at(14.0), None), Step::Wait(seconds(0.4)));
    election.read(at(14.4), Some(record(2, Some("a"))));
    assert!(matches!(election.next(at(14.4), None), Step::Write(written) if written.holder.as_deref() == Some("b")));
}

#[test]
fn a_lease_that_its_holder_wants_for_longer_is_waited_for_longer() {
    let mut election = Election::new(terms("b"));
    let longer = LeaseRecord { duration: Duration::from_secs(60), ..record(1, Some("a")) };
    election.read(at(0.0), Some(longer.clone()));
    election.read(at(30.0), Some(longer.clone()));
    assert!(!matches!(election.next(at(30.5), None), Step::Write(_)));
    election.read(at(60.0), Some(longer));
    assert!(matches!(election.next(at(60.0), None), Step::Write(_)));
}

#[test]
fn a_lease_that_was_not_there_is_nobodys_for_its_time_lest_it_was_deleted_under_a_leader() {
    let mut election = Election::new(terms("b"));
    election.read(at(0.0), None);
    let Step::Write(written) = election.next(at(0.0), None) else { panic!() };
    assert_eq!((written.version.as_deref(), written.holder.as_deref()), (None, None));
    let made = stored(written, 1);
    election.wrote(at(0.0), at(0.1), made.clone());
    assert!(!election.leads(at(0.1)));
    for time in [1.0, 5.0, 9.0] {
        election.read(at(time), Some(made.clone()));
        assert!(!matches!(election.next(at(time), None), Step::Write(_)), "{time}");
    }
    election.read(at(9.6), Some(made));
    assert!(matches!(election.next(at(9.6), None), Step::Write(written) if written.holder.as_deref() == Some("b")));
}

#[test]
fn a_write_without_an_answer_is_found_to_be_ours_and_written_once_more_before_anything_is_done() {
    let mut election = Election::new(terms("a"));
    election.read(at(0.0), Some(record(1, None)));
    let Step::Write(written) = election.next(at(0.0), None) else { panic!() };
    election.failed(at(3.0));
    election.read(at(3.5), Some(stored(written, 2)));
    assert!(!election.leads(at(3.5)));
    let Step::Write(written) = election.next(at(3.5), None) else { panic!() };
    election.wrote(at(3.5), at(3.6), stored(written, 3));
    assert!(election.leads(at(3.6)));
}

#[test]
fn who_steps_down_leads_no_more_and_leaves_a_free_lease_with_the_trails_head() {
    let mut election = leader();
    let written = election.release(at(1.0), head("60:fed")).expect("it is ours");
    assert_eq!((&written.holder, written.version.as_deref()), (&None, Some("2")));
    assert_eq!(receipt(&written), Some("60:fed"));
    assert!(!election.leads(at(1.0)));
    assert_eq!(election.next(at(1.0), None), Step::Lost(Loss::Released));
    assert_eq!(Election::new(terms("b")).release(at(0.0), None), None, "what is not ours is not given back");
}

/// A process, with clocks of its own and calls under way.
struct Process {
    election: Election,
    /// Its ticks in a thousand of the true ones.
    rate: u32,
    /// Ticks that it lost in suspensions.
    slept: Duration,
    /// How far its wall clock is off.
    offset: i64,
    /// Cut short, or frozen, until then.
    frozen_until: Duration,
    call: Option<Call>,
}

enum Call {
    Read { gives_up: Duration },
    Write { sent: Moment, number: usize, gives_up: Duration },
}

/// A write on its way: what it wants, when it arrives, and what became of it.
struct Flight {
    wanted: LeaseRecord,
    arrives: Duration,
    outcome: Option<Result<LeaseRecord, ()>>,
    answer_is_lost: bool,
}

#[derive(Default)]
struct Cluster {
    now: Duration,
    version: u64,
    lease: Option<LeaseRecord>,
    flights: Vec<Flight>,
    processes: Vec<Process>,
    terms_begun: usize,
    /// Who led, in order.
    led: Vec<String>,
    /// Who led and does no more.
    lost: Vec<String>,
}

/// What happens next to a process.
#[derive(Clone, Debug)]
struct Event {
    after_ms: u64,
    process: usize,
    fate: Fate,
}

#[derive(Clone, Debug)]
enum Fate {
    /// It runs; a call that it makes arrives so late, and its answer may be lost.
    Run { late_ms: u64, answer_is_lost: bool },
    /// It stands still, as under SIGSTOP.
    Freeze { ms: u64 },
    /// Its machine is suspended: ticks stand still.
    Suspend { ms: u64 },
    /// It is started anew.
    Restart,
    /// Somebody deletes the lease.
    Delete,
    /// It steps down.
    Release,
}

impl Cluster {
    fn moment(&self, index: usize) -> Moment {
        let process = &self.processes[index];
        let ticks = self.now.saturating_sub(process.slept) * process.rate / 1000;
        let wall = Duration::from_secs(u64::try_from(1_000_000 + process.offset).unwrap()) + self.now;
        Moment { ticks, time: super::super::time::plus(Timestamp::UNIX_EPOCH, wall) }
    }

    fn begin(&mut self, index: usize) {
        self.terms_begun += 1;
        let identity = format!("{index}-{}", self.terms_begun);
        self.processes[index].election = Election::new(terms(&identity));
        self.processes[index].call = None;
    }

    /// Lets arrive what is due by now, in the order of arrival.
    fn arrivals(&mut self) {
        let mut due: Vec<usize> = (0..self.flights.len())
            .filter(|number| self.flights[*number].outcome.is_none() && self.flights[*number].arrives <= self.now)
            .collect();
        due.sort_by_key(|number| self.flights[*number].arrives);
        for number in due {
            let wanted = self.flights[number].wanted.clone();
            let standing = self.lease.as_ref().and_then(|lease| lease.version.clone());
            let outcome = if standing == wanted.version {
                self.version += 1;
                let stored = stored(wanted, self.version);
                self.lease = Some(stored.clone());
                Ok(stored)
            } else {
                Err(())
            };
            self.flights[number].outcome = Some(outcome);
        }
    }

    fn run(&mut self, index: usize, late: Duration, answer_is_lost: bool) {
        if self.now < self.processes[index].frozen_until {
            return;
        }
        let moment = self.moment(index);
        let lease = self.lease.clone();
        let Process { election, call, .. } = &mut self.processes[index];
        *call = match call.take() {
            None => match election.next(moment, None) {
                Step::Read => Some(Call::Read { gives_up: moment.ticks + LEASE / 4 }),
                Step::Write(wanted) => {
                    self.flights.push(Flight { wanted, arrives: self.now + late, outcome: None, answer_is_lost });
                    let number = self.flights.len() - 1;
                    Some(Call::Write { sent: moment, number, gives_up: moment.ticks + LEASE / 4 })
                }
                Step::Wait(_) => None,
                Step::Lost(_) => return self.begin(index),
            },
            Some(Call::Read { gives_up }) if answer_is_lost => {
                if moment.ticks >= gives_up {
                    election.failed(moment);
                    None
                } else {
                    Some(Call::Read { gives_up })
                }
            }
            Some(Call::Read { .. }) => {
                election.read(moment, lease);
                None
            }
            Some(Call::Write { sent, number, gives_up }) => {
                let flight = &self.flights[number];
                match &flight.outcome {
                    Some(Ok(stored)) if !flight.answer_is_lost => {
                        election.wrote(sent, moment, stored.clone());
                        None
                    }
                    Some(Err(())) if !flight.answer_is_lost => {
                        election.failed(moment);
                        None
                    }
                    _ if moment.ticks >= gives_up => {
                        election.failed(moment);
                        None
                    }
                    _ => Some(Call::Write { sent, number, gives_up }),
                }
            }
        };
    }

    fn happens(&mut self, event: &Event) {
        self.now += Duration::from_millis(event.after_ms);
        self.arrivals();
        let index = event.process % self.processes.len();
        match event.fate {
            Fate::Run { late_ms, answer_is_lost } => {
                self.run(index, Duration::from_millis(late_ms), answer_is_lost);
            }
            Fate::Freeze { ms } => {
                self.processes[index].frozen_until = self.now + Duration::from_millis(ms);
            }
            Fate::Suspend { ms } => {
                let slept = Duration::from_millis(ms);
                self.processes[index].frozen_until = self.now + slept;
                self.processes[index].slept += slept;
                self.now += slept;
                self.arrivals();
            }
            Fate::Restart => self.begin(index),
            Fate::Delete => self.lease = None,
            Fate::Release => {
                let moment = self.moment(index);
                if self.now >= self.processes[index].frozen_until
                    && let Some(wanted) = self.processes[index].election.release(moment, None)
                {
                    let arrives = self.now;
                    self.flights.push(Flight { wanted, arrives, outcome: None, answer_is_lost: true });
                    self.processes[index].call = None;
                }
            }
        }
    }

    /// Who would act, were they to look at their clocks now.
    fn leaders(&mut self) -> Vec<usize> {
        let mut leaders = Vec::new();
        for index in 0..self.processes.len() {
            let moment = self.moment(index);
            let election = &mut self.processes[index].election;
            let (leads, identity) = (election.leads(moment), election.terms.identity.clone());
            if leads {
                assert!(!self.lost.contains(&identity), "{identity} leads again");
                leaders.push(index);
                if self.led.last() != Some(&identity) {
                    self.led.push(identity);
                }
            } else if self.led.contains(&identity) && !self.lost.contains(&identity) {
                self.lost.push(identity);
            }
        }
        leaders
    }
}

fn cluster(rates: &[u32], offsets: &[i64]) -> Cluster {
    let mut cluster = Cluster::default();
    for (index, (rate, offset)) in rates.iter().zip(offsets).enumerate() {
        cluster.processes.push(Process {
            election: Election::new(terms("")),
            rate: *rate,
            slept: Duration::ZERO,
            offset: *offset,
            frozen_until: Duration::ZERO,
            call: None,
        });
        cluster.begin(index);
    }
    cluster
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let late = prop_oneof![8 => 0_u64..300, 1 => 0_u64..30_000];
    let fate = prop_oneof![
        40 => (late, prop::bool::weighted(0.1)).prop_map(|(late_ms, answer_is_lost)| Fate::Run { late_ms, answer_is_lost }),
        1 => (0_u64..40_000).prop_map(|ms| Fate::Freeze { ms }),
        1 => (0_u64..40_000).prop_map(|ms| Fate::Suspend { ms }),
        1 => Just(Fate::Restart),
        1 => Just(Fate::Delete),
        1 => Just(Fate::Release),
    ];
    let event = (0_u64..700, 0_usize..3, fate).prop_map(|(after_ms, process, fate)| Event { after_ms, process, fate });
    prop::collection::vec(event, 1..400)
}

#[test]
fn the_histories_have_leaders_that_change() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut terms, mut changed) = (0, 0);
    for _ in 0..200 {
        let events = events().new_tree(&mut runner).unwrap().current();
        let mut cluster = cluster(&[900, 1000, 1100], &[0; 3]);
        for event in &events {
            cluster.happens(event);
            cluster.leaders();
        }
        terms += cluster.led.len();
        changed += usize::from(cluster.led.len() > 1);
    }
    assert!(terms >= 200 && changed >= 60, "{terms} terms, {changed} histories with more than one");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn there_are_never_two_leaders(
        rates in prop::array::uniform3(850_u32..1150),
        offsets in prop::array::uniform3(-500_000_i64..500_000),
        events in events(),
    ) {
        let mut cluster = cluster(&rates, &offsets);
        for (number, event) in events.iter().enumerate() {
            cluster.happens(event);
            let leaders = cluster.leaders();
            prop_assert!(leaders.len() <= 1, "{leaders:?} after event {number}, {event:?}");
        }
    }

    #[test]
    fn with_an_api_server_that_answers_there_is_a_leader_soon_whatever_was_before(
        rates in prop::array::uniform3(850_u32..1150),
        events in events(),
    ) {
        let mut cluster = cluster(&rates, &[0; 3]);
        for event in &events {
            cluster.happens(event);
        }
        // What was frozen thaws, what was on its way arrives, and then a lease may run out once for each of them.
        let calm = cluster.now + Duration::from_secs(40 + 2 * 9 + 10);
        let mut led = false;
        for turn in 0.. {
            cluster.happens(&Event { after_ms: 40, process: turn, fate: Fate::Run { late_ms: 5, answer_is_lost: false } });
            led = !cluster.leaders().is_empty();
            if led || cluster.now > calm {
                break;
            }
        }
        prop_assert!(led, "nobody leads");
    }
}
