use proptest::prelude::*;
use serde_json::json;

use super::*;

fn request(uid: &str) -> RequestRef {
    RequestRef { namespace: "team".to_owned(), name: format!("web-{uid}"), uid: uid.to_owned() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn count(open: i32, total: i64, last: i64) -> SessionCount {
    SessionCount { open, total, last_start_time: at(last) }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Reports, and the moment that it is.
struct World {
    reports: Reports,
    start: Instant,
    now: Instant,
    version: u64,
}

fn world() -> World {
    let now = Instant::now();
    World { reports: Reports::default(), start: now, now, version: 1 }
}

impl World {
    fn after(&mut self, duration: Duration) -> &mut Self {
        self.now += duration;
        self
    }

    fn open(&mut self, uid: &str, second: i64) -> &mut Self {
        self.reports.opened(self.now, &request(uid), at(second));
        self
    }

    fn close(&mut self, uid: &str) -> &mut Self {
        self.reports.closed(self.now, uid);
        self
    }

    fn seen(&mut self, uid: &str, stored: Option<SessionCount>) -> &mut Self {
        self.version += 1;
        self.reports.seen(self.now, &request(uid), Some(self.version), stored);
        self
    }

    fn ends(&mut self, uid: &str, outcome: Written) -> &mut Self {
        self.reports.written(self.now, uid, outcome);
        self
    }

    fn stored(&mut self, uid: &str) -> &mut Self {
        self.version += 1;
        let version = Some(self.version);
        self.ends(uid, Written::Stored { version })
    }

    #[track_caller]
    fn writes(&mut self, uid: &str, expected: SessionCount) -> &mut Self {
        let next = self.reports.next(self.now);
        assert_eq!(next, Next::Write(Report { request: request(uid), count: expected }));
        self
    }

    #[track_caller]
    fn waits(&mut self, expected: Duration) -> &mut Self {
        assert_eq!(self.reports.next(self.now), Next::At(self.now + expected));
        self
    }

    #[track_caller]
    fn rests(&mut self) -> &mut Self {
        assert_eq!(self.reports.next(self.now), Next::Rest);
        self
    }
}

#[test]
fn the_first_session_is_written_at_once_and_what_follows_once_in_ten_seconds() {
    let mut world = world();
    world.rests().open("a", 100).writes("a", count(1, 1, 100)).rests().stored("a").rests();
    world.after(seconds(1)).open("a", 101).open("a", 102).close("a").waits(seconds(9));
    world.after(seconds(9)).writes("a", count(2, 3, 102)).stored("a").rests();
    world.close("a").close("a").waits(REPORT_GAP).after(REPORT_GAP).writes("a", count(0, 3, 102)).stored("a").rests();
    // Long after, at once again.
    world.after(seconds(60)).open("a", 200).writes("a", count(1, 4, 200));
}

#[test]
fn what_changes_while_a_write_is_out_is_written_after_it() {
    let mut world = world();
    world.open("a", 100).writes("a", count(1, 1, 100)).close("a").rests().after(seconds(2)).stored("a");
    world.waits(seconds(8)).after(seconds(8)).writes("a", count(0, 1, 100)).stored("a").rests();
}

#[test]
fn a_life_before_this_one_is_set_right_and_goes_on() {
    let mut world = world();
    world.seen("a", Some(count(3, 7, 50))).writes("a", count(0, 7, 50)).stored("a").rests();
    world.after(REPORT_GAP).open("a", 100).writes("a", count(1, 8, 100)).stored("a");
    // One that was left in order costs nothing, and goes on as well; so does one whose clock was ahead.
    world.seen("b", Some(count(0, 2, 900))).rests();
    world.open("b", 100).writes("b", count(1, 3, 900)).stored("b");
    // One that somebody drove to the bound.
    world.seen("d", Some(count(0, SESSIONS_TOTAL_MAX, 50))).rests();
    world.open("d", 100).writes("d", count(1, SESSIONS_TOTAL_MAX, 100)).stored("d");
    // Whoever has no entry is not remembered.
    world.seen("c", None).rests();
    assert_eq!(world.reports.by_uid.len(), 3);
}

#[test]
fn what_the_watch_tells_late_changes_nothing() {
    let mut world = world();
    world.open("a", 100).writes("a", count(1, 1, 100));
    // Our own write is heard of before it is answered.
    world.seen("a", Some(count(1, 1, 100))).rests();
    let version = world.version;
    world.ends("a", Written::Stored { version: Some(version) }).rests();
    // An older version, and the same one again.
    world.reports.seen(world.now, &request("a"), Some(version - 1), None);
    world.reports.seen(world.now, &request("a"), Some(version), Some(count(1, 1, 100)));
    world.rests();
    assert_eq!(world.reports.by_uid["a"].disputes, 0);
    // A write that nobody answered was stored all the same.
    world.after(REPORT_GAP).close("a").writes("a", count(0, 1, 100)).ends("a", Written::Failed);
    world.seen("a", Some(count(0, 1, 100))).rests();
    assert_eq!(world.reports.by_uid["a"].disputes, 0);
}

#[test]
fn an_entry_that_somebody_else_wrote_or_took_away_is_set_right_more_and_more_seldom() {
    let mut world = world();
    world.open("a", 100).writes("a", count(1, 1, 100)).stored("a");
    for (forged, gap) in [(Some(count(9, 40, 100)), 10), (None, 20), (Some(count(0, 40, 100)), 40)] {
        world.after(seconds(600)).seen("a", forged.clone()).waits(seconds(gap)).after(seconds(gap));
        world.writes("a", count(1, 40, 100)).stored("a").rests();
    }
    // Two gateways of one name, for hours: neither gives up, and both yield.
    for _ in 0..100 {
        world.seen("a", Some(count(0, 40, 100)));
        let Next::At(time) = world.reports.next(world.now) else { panic!("it does not wait") };
        assert!(time <= world.now + REPORT_GAP * 32);
        world.now = time;
        world.writes("a", count(1, 40, 100)).stored("a");
    }
    world.seen("a", Some(count(0, 40, 100))).waits(REPORT_GAP * 32);
}

#[test]
fn a_write_that_failed_is_tried_again_with_what_is_true_by_then() {
    let mut world = world();
    world.open("a", 100).writes("a", count(1, 1, 100)).ends("a", Written::Failed);
    for gap in [10, 20, 40, 80, 160, 320, 320] {
        world.waits(seconds(gap)).after(seconds(gap)).writes("a", count(1, 1, 100)).ends("a", Written::Failed);
    }
    world.close("a").after(seconds(320)).writes("a", count(0, 1, 100)).stored("a").rests();
    world.open("a", 900).waits(REPORT_GAP);
}

#[test]
fn what_is_gone_is_forgotten_whatever_is_out() {
    let mut world = world();
    world.open("a", 100).open("b", 100).open("c", 100).open("d", 100);
    world.writes("a", count(1, 1, 100)).writes("b", count(1, 1, 100)).ends("a", Written::Gone);
    world.reports.gone("b");
    world.reports.listed(&HashSet::from(["d"]));
    world.stored("b").close("a").close("b").close("c");
    world.writes("d", count(1, 1, 100)).stored("d").rests();
    assert_eq!((world.reports.by_uid.len(), world.reports.queue.len()), (1, 0));
}

#[test]
fn all_together_write_ten_at_once_and_ten_a_second_and_the_longest_waiting_is_first() {
    let mut world = world();
    for number in 0..1000 {
        world.open(&format!("{number:04}"), 100);
    }
    let mut written = Vec::new();
    let (mut now, mut at_once) = (world.now, 0);
    loop {
        match world.reports.next(now) {
            Next::Write(report) => {
                at_once += usize::from(now == world.start);
                world.reports.written(now, &report.request.uid, Written::Stored { version: None });
                written.push(report.request.uid);
            }
            Next::At(time) => now = time,
            Next::Rest => break,
        }
    }
    assert_eq!((at_once, written.len()), (10, 1000));
    assert!(written.is_sorted(), "somebody jumped the queue");
    let took = now - world.start;
    assert!((seconds(98)..seconds(100)).contains(&took), "{took:?}");
}

#[test]
fn a_gateway_that_ends_writes_all_that_is_true_and_tries_each_once() {
    let mut world = world();
    for uid in ["a", "b"] {
        world.open(uid, 100).writes(uid, count(1, 1, 100)).stored(uid).close(uid);
    }
    world.waits(REPORT_GAP);
    assert!(!world.reports.is_settled());
    world.reports.hurry();
    world.writes("a", count(0, 1, 100)).writes("b", count(0, 1, 100)).rests();
    assert!(!world.reports.is_settled(), "two writes are out");
    world.stored("a").ends("b", Written::Failed).rests();
    assert!(world.reports.is_settled());
}

#[test]
fn an_entry_is_found_by_the_gateways_name() {
    let object = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "web-a", "namespace": "team", "uid": "a"},
        "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 AAAA"},
        "status": {"sessions": [
            {"gateway": "gateway-1", "open": 1, "total": 9, "lastStartTime": "1970-01-01T00:01:40Z"},
            {"gateway": "gateway-0", "open": 2, "total": 5, "lastStartTime": "1970-01-01T00:01:41Z"},
        ]},
    });
    let object: InstanceAccess = serde_json::from_value(object).unwrap();
    let ours = count(2, 5, 101);
    assert_eq!(reported(&object, "gateway-0"), Some((request("a"), Some(ours.clone()))));
    assert_eq!(reported(&object, "gateway"), Some((request("a"), None)));
    assert_eq!(ours.entry("gateway-0"), object.status.unwrap().sessions[1]);
}

#[test]
fn a_gateways_name_is_one_that_a_pod_can_have() {
    for good in ["gateway", "gateway-0", "a", "0.b-c", &"a".repeat(100)] {
        assert_eq!(gateway_name(good), Ok(good.to_owned()));
    }
    for bad in ["", "-a", "a-", ".a", "a.", "A", "a b", "a/b", "ü", "a\n", "a&force=true", &"a".repeat(101)] {
        assert!(gateway_name(bad).is_err(), "{bad:?}");
    }
}

/// What happens to one of three requests.
#[derive(Clone, Debug)]
enum Event {
    Open(usize),
    Close(usize),
    /// The write that is out the longest: stored and answered, stored and not answered, or neither.
    Answer(bool, bool),
    /// The watch tells how it is.
    Tell(usize),
    /// Somebody with another life's memory writes the entry.
    Forge(usize, i32),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..3_usize).prop_map(Event::Open),
        4 => (0..3_usize).prop_map(Event::Close),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(stored, answered)| Event::Answer(stored, answered)),
        3 => (0..3_usize).prop_map(Event::Tell),
        1 => (0..3_usize, 0..5_i32).prop_map(|(which, open)| Event::Forge(which, open)),
        4 => (0..15_000_u64).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 0..200)
}

/// An API server with three requests, and what is true.
struct Server {
    world: World,
    stored: [Option<SessionCount>; 3],
    open: [i32; 3],
    opened: [i64; 3],
    out: Vec<Report>,
    writes: Vec<(Instant, String)>,
}

impl Server {
    fn uid(which: usize) -> String {
        which.to_string()
    }

    /// Sends what is due.
    fn send(&mut self) {
        while let Next::Write(report) = self.world.reports.next(self.world.now) {
            assert!(!self.out.iter().any(|out| out.request == report.request), "two writes of one request are out");
            let which: usize = report.request.uid.parse().unwrap();
            assert_eq!(report.count.open, self.open[which], "not the newest truth");
            assert!(report.count.total >= self.opened[which]);
            self.writes.push((self.world.now, report.request.uid.clone()));
            self.out.push(report);
        }
    }

    fn answer(&mut self, is_stored: bool, is_answered: bool) {
        if self.out.is_empty() {
            return;
        }
        let report = self.out.remove(0);
        let which: usize = report.request.uid.parse().unwrap();
        if is_stored {
            let before = self.stored[which].as_ref().map_or(0, |stored| stored.total);
            // The CRD would refuse it.
            let falls = report.count.total < before;
            if falls {
                self.world.ends(&report.request.uid, Written::Failed);
                return;
            }
            self.stored[which] = Some(report.count);
            self.world.version += 1;
        }
        let version = Some(self.world.version);
        let outcome = if is_stored && is_answered { Written::Stored { version } } else { Written::Failed };
        self.world.ends(&report.request.uid, outcome);
    }

    fn tell(&mut self, which: usize) {
        let (now, version) = (self.world.now, self.world.version);
        self.world.reports.seen(now, &request(&Self::uid(which)), Some(version), self.stored[which].clone());
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Open(which) => {
                self.open[which] += 1;
                self.opened[which] += 1;
                self.world.open(&Self::uid(which), 100);
            }
            Event::Close(which) if self.open[which] > 0 => {
                self.open[which] -= 1;
                self.world.close(&Self::uid(which));
            }
            Event::Close(_) => {}
            Event::Answer(stored, answered) => self.answer(stored, answered),
            Event::Tell(which) => self.tell(which),
            Event::Forge(which, open) => {
                let total = self.stored[which].as_ref().map_or(5, |stored| stored.total + 5);
                self.stored[which] = Some(count(open, total, 100));
                self.world.version += 1;
            }
            Event::Pass(milliseconds) => {
                self.world.after(Duration::from_millis(milliseconds));
            }
        }
        self.send();
    }
}

proptest! {
    #[test]
    fn whatever_happens_writes_are_few_never_old_and_in_the_end_the_truth_stands(events in events()) {
        let mut server = Server {
            world: world(), stored: [None, None, None], open: [0; 3], opened: [0; 3], out: Vec::new(), writes: Vec::new(),
        };
        for event in events {
            server.happens(event);
        }
        // The API server answers from here on, and nothing changes any more.
        for _ in 0..64 {
            for which in 0..3 {
                server.tell(which);
            }
            server.send();
            while !server.out.is_empty() {
                server.answer(true, true);
            }
            match server.world.reports.next(server.world.now) {
                Next::At(time) => server.world.now = time,
                Next::Rest => {}
                Next::Write(report) => {
                    server.writes.push((server.world.now, report.request.uid.clone()));
                    server.out.push(report);
                }
            }
        }
        for which in 0..3 {
            let stored = &server.stored[which];
            prop_assert_eq!(stored.as_ref().map_or(0, |stored| stored.open), server.open[which], "{:?}", stored);
            prop_assert!(stored.as_ref().map_or(0, |stored| stored.total) >= server.opened[which]);
        }
        for (index, (time, uid)) in server.writes.iter().enumerate() {
            let next = server.writes[index + 1..].iter().find(|(_, other)| other == uid);
            prop_assert!(next.is_none_or(|(next, _)| *next - *time >= REPORT_GAP), "two writes in less than the gap");
        }
    }
}
