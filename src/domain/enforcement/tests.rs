use super::*;

mod upgrades;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn mark(uid: &str, generation: i64, changed: i64) -> State {
    State::Sound(Mark { uid: uid.into(), generation, changed_time: Some(at(changed)) })
}

fn wrong() -> State {
    State::Wrong("is missing".into())
}

fn hidden() -> State {
    State::Hidden("may not be looked at".into())
}

/// A look at one piece at each second; returns what is known just after the last one.
fn after(looks: &[(i64, State)]) -> Enforcement {
    let mut lookout = Lookout::default();
    for (second, state) in looks {
        lookout.looked(
            at(*second),
            &[Piece { name: "It".into(), needed: true, state: state.clone() }],
            "apply it anew",
        );
    }
    lookout.enforcement(at(looks.last().map_or(0, |(second, _)| *second)))
}

/// What was written at `uncovered` may have been written without it, and a second later not.
#[track_caller]
fn check(looks: &[(i64, State)], uncovered: i64) {
    let enforcement = after(looks);
    assert!(!enforcement.covers(at(uncovered)), "{looks:?}: {enforcement:?} covers {uncovered}");
    assert!(enforcement.covers(at(uncovered + 1)), "{looks:?}: {enforcement:?} does not cover {}", uncovered + 1);
}

#[test]
fn what_was_written_before_it_stood_and_was_taken_up_is_not_covered() {
    let sound = || mark("a", 1, 0);
    // By its own account, whenever we began to look.
    check(&[(1000, sound())], 5);
    check(&[(1000, sound()), (2000, sound())], 5);
    // A gap that was seen ends with the first look that sees it whole.
    check(&[(1000, sound()), (1010, wrong()), (1020, sound())], 1025);
    check(&[(1000, wrong()), (1010, sound())], 1015);
    // One between two looks: made again, or bent and mended.
    check(&[(1000, sound()), (1010, mark("b", 1, 1004))], 1015);
    check(&[(1000, sound()), (1010, mark("a", 3, 1004))], 1015);
    // A gap by the API server's clock, which is ahead of ours.
    check(&[(1000, sound()), (1010, mark("a", 3, 1060))], 1065);
    // That we could not look is no gap: nothing changed.
    check(&[(1000, sound()), (1010, hidden()), (1020, sound())], 5);
    check(&[(1000, sound()), (1010, hidden()), (1020, mark("a", 3, 1015))], 1025);
    // Somebody took its account away.
    let silent = State::Sound(Mark { uid: "a".into(), generation: 1, changed_time: None });
    check(&[(1000, silent.clone())], 1005);
    check(&[(1000, silent.clone()), (1010, silent)], 1005);
}

#[test]
fn a_fraction_of_a_second_is_not_known_of_what_kubernetes_keeps() {
    let stands = after(&[(1000, mark("a", 1, 0))]);
    let written = at(5) + jiff::SignedDuration::from_millis(999);
    assert!(!stands.covers(written), "{stands:?}: it reads as written at {}", at(5));
}

#[test]
fn what_need_not_be_there_counts_where_it_is_bent() {
    let absent = || State::NotNeeded;
    check(&[(1000, mark("a", 1, 0)), (1010, absent())], 5);
    check(&[(1000, absent()), (1010, mark("a", 1, 1004))], 1009);
    check(&[(1000, mark("a", 1, 0)), (1010, State::Wrong("is bent".into())), (1020, absent())], 1025);
    assert!(!after(&[(1000, absent()), (1010, State::Wrong("is bent".into()))]).stands());
}

#[test]
fn the_newest_of_all_pieces_counts() {
    let mut lookout = Lookout::default();
    let pieces = [("One", mark("a", 1, 10)), ("Two", mark("b", 1, 700)), ("Three", mark("c", 1, 20))];
    let pieces = pieces.map(|(name, state)| Piece { name: name.into(), needed: true, state });
    lookout.looked(at(1000), &pieces, "");
    assert_eq!(lookout.enforcement(at(1000)), Enforcement::Stands { since_time: at(705) });
}

#[test]
fn what_was_never_seen_stands_for_nobody() {
    let mut lookout = Lookout::default();
    assert_eq!(lookout.enforcement(at(0)), Enforcement::Unseen);
    assert!(!Enforcement::Unseen.stands() && !Enforcement::Unseen.covers(Timestamp::MAX));
    lookout.failed("no answer");
    let missing = lookout.enforcement(at(1));
    assert!(matches!(&missing, Enforcement::Missing(why) if why.contains("no answer")), "{missing:?}");
    assert!(!missing.covers(Timestamp::MAX));
}

#[test]
fn findings_are_all_told_in_order_with_the_remedy() {
    let mut lookout = Lookout::default();
    let piece = |name: &str, state| Piece { name: name.into(), needed: true, state };
    let pieces = [piece("B", wrong()), piece("C", mark("c", 1, 0)), piece("A", hidden())];
    lookout.looked(at(0), &pieces, "apply it anew");
    let told = "A may not be looked at, B is missing; apply it anew";
    assert_eq!(lookout.enforcement(at(0)), Enforcement::Missing(told.into()));
    // And stay so while no look comes to an answer.
    lookout.failed("no answer");
    assert_eq!(lookout.enforcement(at(500)), Enforcement::Missing(told.into()));
}

#[test]
fn a_look_grows_old_and_a_failed_one_does_not_make_it_young() {
    let mut lookout = Lookout::default();
    let pieces = [Piece { name: "It".into(), needed: true, state: mark("a", 1, 0) }];
    lookout.looked(at(1000), &pieces, "");
    for second in [1030, 1060, 1090] {
        lookout.failed("no answer");
        assert!(lookout.enforcement(at(second)).stands(), "{second}");
    }
    assert!(!lookout.enforcement(at(1091)).stands());
    // Of a clock that was stepped back: of no known age.
    assert!(!lookout.enforcement(at(999)).stands());
    lookout.looked(at(2000), &pieces, "");
    assert_eq!(lookout.enforcement(at(2000)), Enforcement::Stands { since_time: at(5) });
}

#[test]
fn a_gap_that_a_clock_saw_before_it_was_stepped_back_refuses_nobody_until_then() {
    let sound = || mark("a", 1, 0);
    check(&[(9000, wrong()), (9010, sound()), (1000, sound()), (1010, sound())], 1005);
}

#[test]
fn one_look_that_is_not_let_see_all_says_nothing_and_two_say_that_it_may_not_stand() {
    let is_missing = |looks: &[(i64, State)]| matches!(after(looks), Enforcement::Missing(_));
    let sound = || mark("a", 1, 0);
    assert!(is_missing(&[(1000, hidden())]), "nothing was ever seen");
    assert!(!is_missing(&[(1000, sound()), (1010, hidden())]), "as from an API server that starts");
    assert!(is_missing(&[(1000, sound()), (1010, hidden()), (1012, hidden())]));
    assert!(!is_missing(&[(1000, sound()), (1010, hidden()), (1012, sound()), (1022, hidden())]));
    assert!(is_missing(&[(1000, wrong()), (1010, hidden())]), "it did not stand");
    // However long nobody asks again.
    let mut lookout = Lookout::default();
    for (second, state) in [(1000, sound()), (1010, hidden())] {
        lookout.looked(at(second), &[Piece { name: "It".into(), needed: true, state }], "apply it anew");
    }
    assert!(lookout.is_unsure() && lookout.enforcement(at(1090)).stands());
    assert!(!lookout.enforcement(at(1091)).stands());
}

#[test]
fn after_history_was_undone_the_first_look_that_is_not_let_see_all_counts() {
    let piece = |state: State| [Piece { name: "It".into(), needed: true, state }];
    let mut lookout = Lookout::default();
    lookout.looked(at(1000), &piece(mark("a", 1, 0)), "apply it anew");
    lookout.doubt();
    lookout.looked(at(1010), &piece(hidden()), "apply it anew");
    assert!(!lookout.enforcement(at(1010)).stands());
}

#[test]
fn after_history_was_undone_nobody_is_judged_by_a_look_that_was_begun_before() {
    let mut lookout = Lookout::default();
    let pieces = [Piece { name: "It".into(), needed: true, state: mark("a", 1, 0) }];
    let look = |lookout: &mut Lookout, second| lookout.looked(at(second), &pieces, "apply it anew");
    lookout.listed();
    lookout.begins();
    look(&mut lookout, 1000);
    assert!(lookout.judged(at(1000)).stands());
    // One is under way just then.
    lookout.begins();
    lookout.doubt();
    assert_eq!(lookout.judged(at(1001)), Enforcement::Unseen);
    look(&mut lookout, 1002);
    assert_eq!(lookout.judged(at(1002)), Enforcement::Unseen);
    lookout.begins();
    look(&mut lookout, 1003);
    assert!(lookout.judged(at(1003)).stands());
    // Nor before requests were listed at all.
    let mut lookout = Lookout::default();
    lookout.doubt();
    lookout.begins();
    look(&mut lookout, 1000);
    assert_eq!(lookout.judged(at(1000)), Enforcement::Unseen);
}

#[test]
fn beside_what_is_wrong_it_does_not_matter_that_something_is_hidden() {
    let piece = |name: &str, state: State| Piece { name: name.into(), needed: true, state };
    let mut lookout = Lookout::default();
    lookout.looked(at(1000), &[piece("It", mark("a", 1, 0)), piece("Other", mark("b", 1, 0))], "apply it anew");
    lookout.looked(at(1010), &[piece("It", hidden()), piece("Other", wrong())], "apply it anew");
    assert!(!lookout.enforcement(at(1010)).stands());
}
