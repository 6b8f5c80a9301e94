//! What an upgrade changes, and what somebody who hides behind one does.

use proptest::prelude::*;

use super::*;

/// A look of each row, then a new leader, of the same or of another release, with its looks; returns what it believes.
fn over(before: &[(i64, State)], after: &[(i64, State)]) -> Enforcement {
    let look = |mut lookout: Lookout, looks: &[(i64, State)]| {
        for (second, state) in looks {
            lookout.looked(
                at(*second),
                &[Piece { name: "It".into(), needed: true, state: state.clone() }],
                "apply it anew",
            );
        }
        lookout
    };
    let lookout = look(Lookout::default(), before);
    let next = match lookout.vouched() {
        Some(vouched) => Lookout::after(at(1_000_000), Vouched::read(&vouched.text()).unwrap()),
        None => Lookout::default(),
    };
    look(next, after).enforcement(at(after.last().unwrap().0))
}

/// As [`check`](super::check), with a new leader between the looks.
#[track_caller]
fn check_over(before: &[(i64, State)], after: &[(i64, State)], uncovered: i64) {
    let enforcement = over(before, after);
    let told = format!("{before:?}, {after:?}: {enforcement:?}");
    assert!(!enforcement.covers(at(uncovered)), "{told} covers {uncovered}");
    assert!(enforcement.covers(at(uncovered + 1)), "{told} does not cover {}", uncovered + 1);
}

#[test]
fn between_two_sound_versions_in_a_row_there_was_no_gap() {
    let sound = || mark("a", 1, 0);
    // Other words in a CRD, for example: sound before and after in the eyes of one release.
    check(&[(1000, sound()), (1010, mark("a", 2, 1004))], 5);
    check(&[(1000, sound()), (1010, mark("a", 2, 1004)), (1020, mark("a", 3, 1015))], 5);
    check(&[(1000, sound()), (1010, hidden()), (1020, mark("a", 2, 1015))], 5);
    // Not those of two changes, of which we saw the outcome, nor of an older version.
    check(&[(1000, sound()), (1010, mark("a", 2, 1004)), (1020, mark("a", 4, 1015))], 1025);
    check(&[(1000, mark("a", 2, 0)), (1010, sound())], 1015);
    // What was wrong and is the same again, or the next: from what we ship it takes two changes to go away and come back.
    check(&[(1000, sound()), (1010, wrong()), (1020, sound())], 1025);
    check(&[(1000, sound()), (1010, wrong()), (1020, mark("a", 2, 1015))], 1025);
    // Nor what has no uid, or is not counted.
    check(&[(1000, mark("", 1, 0)), (1010, mark("", 1, 0))], 1015);
    check(&[(1000, mark("a", 0, 0)), (1010, mark("a", 1, 0))], 1015);
}

#[test]
fn a_grant_outlives_an_upgrade_and_its_rollback() {
    let old = || mark("a", 1, 0);
    let new = || mark("a", 2, 1004);
    // First the objects, then the operator; or first the operator.
    check_over(&[(1000, old()), (1010, wrong())], &[(1020, new())], 5);
    check_over(&[(1000, old())], &[(1010, wrong()), (1020, new())], 5);
    // The same objects, by their own account of another time.
    check_over(&[(1000, old())], &[(1010, mark("a", 1, 700))], 5);
    // Back again, as the new operator saw the new ones stand.
    check_over(&[(1000, new())], &[(1010, wrong()), (1020, mark("a", 3, 1015))], 1009);
}

#[test]
fn what_is_changed_twice_while_no_operator_looks_is_a_gap() {
    let old = || mark("a", 1, 0);
    // Bent, and mended or upgraded; deleted, and made again.
    check_over(&[(1000, old())], &[(1010, mark("a", 3, 1004))], 1015);
    check_over(&[(1000, old()), (1010, wrong())], &[(1020, mark("a", 3, 1015))], 1025);
    check_over(&[(1000, old())], &[(1010, mark("b", 1, 1004))], 1015);
    check_over(&[(1000, old())], &[(1010, wrong()), (1020, mark("b", 1, 1015))], 1025);
    // Also if whoever did it gave the object an older account: as of when we saw it.
    check_over(&[(1000, old())], &[(1010, mark("a", 3, -500))], 1015);
    // A roll-out that went back before its operator ever looked: nobody can say what stood between.
    check_over(&[(1000, old()), (1010, wrong())], &[(1030, mark("a", 3, 1015))], 1035);
}

#[test]
fn what_a_gap_took_back_stays_taken_back_over_upgrades() {
    let mended = [(1000, mark("a", 1, 0)), (1010, wrong()), (1020, mark("a", 3, 1015))];
    check_over(&mended, &[(1030, mark("a", 3, 1015))], 1025);
    check_over(&mended, &[(1030, mark("a", 4, 1028))], 1025);
    // Of a clock that is ahead of ours.
    check_over(&mended, &[(900, mark("a", 3, 10))], 1020);
}

#[test]
fn while_it_is_missing_the_last_word_stands_and_before_all_stood_there_is_none() {
    let mut lookout = Lookout::default();
    let look = |lookout: &mut Lookout, second, states: [State; 2]| {
        let pieces = ["One", "Two"].into_iter().zip(states);
        let pieces: Vec<_> = pieces.map(|(name, state)| Piece { name: name.into(), needed: true, state }).collect();
        lookout.looked(at(second), &pieces, "");
        lookout.vouched().map(Vouched::text)
    };
    assert_eq!(look(&mut lookout, 1000, [mark("a", 1, 0), wrong()]), None);
    let word = look(&mut lookout, 1010, [mark("a", 1, 0), mark("b", 1, 1005)]);
    assert_eq!(
        word.as_deref(),
        Some(
            r#"{"era":1,"toldTime":"2027-01-15T08:16:45Z","seenTime":"2027-01-15T08:16:50Z","pieces":{"One":["a",1],"Two":["b",1]}}"#
        )
    );
    // Half of an upgrade changes it by nothing.
    assert_eq!(look(&mut lookout, 1020, [mark("a", 2, 1015), wrong()]), word);
    assert_eq!(look(&mut lookout, 1030, [wrong(), hidden()]), word);
    // What is not needed, and not there, is not in it.
    let word = look(&mut lookout, 1040, [State::NotNeeded, mark("b", 1, 1005)]).unwrap();
    assert!(word.ends_with(r#""pieces":{"Two":["b",1]}}"#), "{word}");
}

#[test]
fn what_comes_new_with_a_release_is_no_gap_unless_it_fills_in_or_was_changed() {
    let look = |looks: &[(i64, bool, State)]| {
        let one = [("One", &Version { uid: "a".into(), generation: 1, inherited: false })];
        let mut lookout = Lookout::after(at(0), Vouched::new(at(0), Timestamp::MIN, one.into_iter()));
        for (second, needed, state) in looks {
            let one = Piece { name: "One".into(), needed: true, state: mark("a", 2, 990) };
            let two = Piece { name: "Two".into(), needed: *needed, state: state.clone() };
            lookout.looked(at(*second), &[one, two], "");
        }
        lookout.enforcement(at(looks.last().unwrap().0))
    };
    let stands = |second| Enforcement::Stands { since_time: at(second) };
    assert_eq!(look(&[(1000, true, mark("b", 1, 995))]), stands(5));
    // Also if the operator came first, and found it missing.
    assert_eq!(look(&[(990, true, wrong()), (1000, true, mark("b", 1, 995))]), stands(5));
    assert_eq!(look(&[(1000, false, mark("b", 1, 995))]), stands(1000));
    assert_eq!(look(&[(1000, true, mark("b", 2, 995))]), stands(1000));
    // From then on it is one of them.
    assert_eq!(look(&[(1000, true, mark("b", 1, 995)), (1010, true, mark("c", 1, 1005))]), stands(1015));
    assert_eq!(
        look(&[(1000, true, mark("b", 1, 995)), (1010, true, wrong()), (1020, true, mark("b", 3, 1015))]),
        stands(1025)
    );
    // Without a word of a leader before us nothing is old.
    check(&[(1000, mark("b", 1, 995))], 1000);
}

#[test]
fn what_is_damaged_or_of_another_era_or_of_a_later_release_is_not_believed() {
    let good = r#"{"era":1,"toldTime":"2027-01-15T08:00:00Z","pieces":{"One":["a",1]}}"#;
    assert_eq!(Vouched::read(good).unwrap().text(), good);
    let long = format!("{good}{}", " ".repeat(BYTES_OF_NOBODY));
    for (text, why) in [
        ("", "cannot be read"),
        ("{}", "cannot be read"),
        ("[]", "cannot be read"),
        (&good[..40], "cannot be read"),
        (&good.replace("\"era\":1", "\"era\":2"), "era 2"),
        (&good.replace("\"era\":1", "\"era\":0"), "era 0"),
        (&good.replace("\"era\"", "\"limits\":[],\"era\""), "cannot be read"),
        (&good.replace("[\"a\",1]", "[\"a\",1.5]"), "cannot be read"),
        (&good.replace("[\"a\",1]", "[\"a\"]"), "cannot be read"),
        (&long, "longer than"),
    ] {
        let error = Vouched::read(text).unwrap_err();
        assert!(error.to_string().contains(why), "{text}: {error}");
    }
}

const BYTES_OF_NOBODY: usize = 16 * 1024;

/// What a piece says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spec {
    Of(u8),
    Bent,
}

/// Something that happens to two pieces, or to the operator that looks at them, each a second after the other.
#[derive(Clone, Copy, Debug)]
enum Event {
    Apply(usize, Spec),
    Delete(usize),
    Label,
    Look,
    /// The Lease is renewed, and bears what the leader says.
    Renew,
    /// Another leader, of that release.
    Lead(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let piece = 0..2_usize;
    let release = 1..4_u8;
    let event = prop_oneof![
        4 => (piece.clone(), release.clone()).prop_map(|(piece, release)| Event::Apply(piece, Spec::Of(release))),
        1 => piece.clone().prop_map(|piece| Event::Apply(piece, Spec::Bent)),
        1 => piece.prop_map(Event::Delete),
        1 => Just(Event::Label),
        5 => Just(Event::Look),
        2 => Just(Event::Renew),
        2 => release.prop_map(Event::Lead),
    ];
    prop::collection::vec(event, 1..60)
}

/// The API server, as far as it counts, and a leader.
struct Cluster {
    now: i64,
    pieces: [Option<(u64, i64, i64, Spec)>; 2],
    uids: u64,
    /// The last second at which somebody could have written anything.
    open: i64,
    lease: Option<String>,
    release: u8,
    lookout: Lookout,
}

impl Cluster {
    /// All of the first release, looked at and written down.
    fn new() -> Self {
        let pieces = [Some((1, 1, 0, Spec::Of(1))), Some((2, 1, 0, Spec::Of(1)))];
        let lookout = Lookout::default();
        let mut cluster = Self { now: 100, pieces, uids: 2, open: 0, lease: None, release: 1, lookout };
        cluster.happens(Event::Look);
        cluster.happens(Event::Renew);
        cluster
    }

    fn happens(&mut self, event: Event) {
        self.now += 1;
        match event {
            Event::Apply(which, spec) => {
                let piece = &mut self.pieces[which];
                match piece {
                    Some((_, generation, changed, stands)) if *stands != spec => {
                        (*generation, *changed, *stands) = (*generation + 1, self.now, spec);
                    }
                    Some(_) => {}
                    None => {
                        self.uids += 1;
                        *piece = Some((self.uids, 1, self.now, spec));
                    }
                }
                // Until this second it was open, whatever closed it.
            }
            Event::Delete(which) => self.pieces[which] = None,
            Event::Label => {}
            Event::Look => {
                let release = self.release;
                let pieces = self.pieces.iter().enumerate().map(|(which, piece)| {
                    let state = match piece {
                        Some((uid, generation, changed, spec)) if *spec == Spec::Of(release) => {
                            mark(&uid.to_string(), *generation, *changed)
                        }
                        Some(_) => State::Wrong("is not as it was shipped".into()),
                        None => State::Wrong("is missing".into()),
                    };
                    Piece { name: which.to_string(), needed: true, state }
                });
                self.lookout.looked(at(self.now), &pieces.collect::<Vec<_>>(), "");
            }
            Event::Renew => self.lease = self.lookout.vouched().map(Vouched::text).or(self.lease.take()),
            Event::Lead(release) => {
                self.release = release;
                self.lookout = match &self.lease {
                    Some(text) => Lookout::after(at(1_000_000), Vouched::read(text).unwrap()),
                    None => Lookout::default(),
                };
            }
        }
        if self.pieces.iter().any(|piece| piece.is_none_or(|(_, _, _, spec)| spec == Spec::Bent)) {
            // It is so until the next event, a second later.
            self.open = self.now + 1;
        }
    }

    fn enforcement(&self) -> Enforcement {
        self.lookout.enforcement(at(self.now))
    }
}

proptest! {
    #[test]
    fn nothing_is_believed_that_was_written_while_something_was_bent_or_missing(events in events()) {
        let mut cluster = Cluster::new();
        for event in events {
            cluster.happens(event);
            if matches!(event, Event::Look) {
                let enforcement = cluster.enforcement();
                prop_assert!(!enforcement.covers(at(cluster.open)), "{:?} at {}: {enforcement:?}", event, cluster.now);
            }
        }
    }

    /// From each release to another, forwards or back, the pieces in any order, the leader changed at any moment or several,
    /// with looks and renewals anywhere.
    #[test]
    fn whatever_was_written_is_believed_over_upgrades(
        upgrades in prop::collection::vec((1..4_u8, any::<bool>(), prop::collection::vec((0..6_u8, 0..16_usize), 0..12)), 1..6)
    ) {
        let mut cluster = Cluster::new();
        let stands = cluster.enforcement();
        for (release, is_reversed, others) in upgrades {
            let before = cluster.release;
            let order = if is_reversed { [1, 0] } else { [0, 1] };
            let mut steps = order.map(|piece| Event::Apply(piece, Spec::Of(release))).to_vec();
            for (other, place) in others {
                let event = match other {
                    0 => Event::Lead(before),
                    1 => Event::Lead(release),
                    2 | 3 => Event::Look,
                    4 => Event::Renew,
                    _ => Event::Label,
                };
                steps.insert(place.min(steps.len()), event);
            }
            steps.extend([Event::Lead(release), Event::Look, Event::Renew]);
            for step in steps {
                cluster.happens(step);
            }
            prop_assert_eq!(cluster.enforcement(), stands.clone());
        }
    }
}

#[test]
fn after_history_was_undone_no_count_is_believed_and_no_word_handed_on() {
    let look = |lookout: &mut Lookout, second, state| {
        lookout.looked(at(second), &[Piece { name: "It".into(), needed: true, state }], "");
    };
    // The count of the copy leads to the next one by chance: it was changed at 1004, by the piece's own account.
    for (is_undone, since) in [(false, 5), (true, 1009)] {
        let mut lookout = Lookout::default();
        look(&mut lookout, 1000, mark("a", 1, 0));
        if is_undone {
            lookout.doubt();
            assert_eq!(lookout.vouched(), None);
        }
        look(&mut lookout, 1010, mark("a", 2, 1004));
        assert_eq!(lookout.enforcement(at(1010)), Enforcement::Stands { since_time: at(since) }, "{is_undone}");
    }
    // What comes new is no longer believed to come with a release; and a gap that was seen stays one.
    let mut lookout = Lookout::default();
    look(&mut lookout, 1000, wrong());
    look(&mut lookout, 1010, mark("a", 2, 0));
    lookout.doubt();
    look(&mut lookout, 1020, mark("a", 2, 0));
    assert_eq!(lookout.enforcement(at(1020)), Enforcement::Stands { since_time: at(1015) });
}

#[test]
fn a_word_of_a_time_ahead_is_not_believed() {
    for (told, is_believed) in [(105, true), (106, false)] {
        let vouched = Vouched::new(at(told), Timestamp::MIN, std::iter::empty());
        let mut lookout = Lookout::after(at(100), vouched);
        let pieces = [Piece { name: "It".into(), needed: true, state: mark("a", 1, 0) }];
        lookout.looked(at(100), &pieces, "");
        let since_time = at(if is_believed { told + 5 } else { 5 });
        assert_eq!(lookout.enforcement(at(100)), Enforcement::Stands { since_time }, "{told}");
    }
}
