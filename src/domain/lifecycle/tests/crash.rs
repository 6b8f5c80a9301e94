//! A crash after every step of every short life, and back.

use super::*;

/// What happens to the request besides the clock.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Nothing,
    Revoked,
    Deleted,
    PolicyGone,
    Denied,
    AuditFails,
    MadeAgain,
    MadeAgainWhileNoEntryIsTaken,
}

const TURNS: [Turn; 8] = [
    Turn::Nothing,
    Turn::Revoked,
    Turn::Deleted,
    Turn::PolicyGone,
    Turn::Denied,
    Turn::AuditFails,
    Turn::MadeAgain,
    Turn::MadeAgainWhileNoEntryIsTaken,
];

/// Lives through `turn` a minute after the request; pushes take as long as they may.
fn live(life: &mut Life, turn: Turn) {
    life.run_until(at(60));
    match turn {
        Turn::Nothing => {}
        Turn::Revoked => life.revoke(),
        Turn::Deleted => life.delete(),
        Turn::PolicyGone => life.change_policies(false, Vec::clear),
        Turn::Denied => life.change_policies(false, |policies| policies.push(policy("no", PolicyEffect::Deny))),
        Turn::AuditFails => life.audit_works = false,
        Turn::MadeAgain | Turn::MadeAgainWhileNoEntryIsTaken => {
            life.delete();
            life.book.works = !matches!(turn, Turn::MadeAgainWhileNoEntryIsTaken);
            life.run_until(at(140));
            assert!(life.book.works || life.object.is_some(), "it went without an entry\n{}", life.log());
            life.book.works = true;
            life.run_until(at(145));
            life.make_again(|_| {});
            life.settle();
            life.shows("Active=False/Consumed Ended=True/Consumed");
        }
    }
    life.run_until(at(150));
    life.heals_and_ends();
}

fn fates() -> [Fate; 4] {
    [
        Fate::Lands { queue: seconds(0), flight: seconds(0) },
        Fate::Lands { queue: seconds(3), flight: seconds(10) },
        Fate::LandsUnheard { flight: seconds(10) },
        Fate::Fails(FailureClass::Throttled),
    ]
}

/// A short grant, on which nobody has put the finalizer yet.
fn short() -> Life {
    world().with(|request| {
        request.metadata.finalizers = None;
        request.spec.ttl_seconds = Some(200);
    })
}

/// How many steps such a life has, each of which may be the last.
fn steps_of(turn: Turn, fate: &Fate) -> usize {
    let mut life = short();
    life.fate = fate.clone();
    life.crash_after = Some(usize::MAX);
    live(&mut life, turn);
    usize::MAX - life.crash_after.expect("it never crashed")
}

#[test]
fn a_grant_and_its_end_survive_a_crash_after_every_step() {
    let mut crashes = 0;
    for turn in TURNS {
        for fate in fates() {
            let steps = steps_of(turn, &fate);
            assert!(steps > 8, "{turn:?} {fate:?}: only {steps} steps");
            for step in 0..steps {
                for delay in [0, 2].into_iter().take(if step % 3 == 0 { 2 } else { 1 }) {
                    let mut life = short();
                    life.fate = fate.clone();
                    life.crash_after = Some(step);
                    life.pace = Duration::from_millis(700 * delay);
                    live(&mut life, turn);
                    if delay == 0 {
                        assert!(life.crashed_at.is_some(), "{turn:?} {fate:?}: no crash after step {step}");
                    }
                    crashes += usize::from(life.crashed_at.is_some());
                }
            }
        }
    }
    assert!(crashes > 600, "only {crashes} crashes");
}

#[test]
fn a_crash_comes_where_it_was_asked_for() {
    let expected = [
        "look up instance",
        "finalizer added",
        "audit GrantIntended",
        "status",
        "push handed over",
        "audit Granted",
        "status",
        "event Granted",
        "look up instance",
        "audit PushIntended",
        "push handed over",
    ];
    for (step, expected) in expected.into_iter().enumerate() {
        let mut life = short();
        life.crash_after = Some(step);
        life.run_until(at(50));
        assert_eq!(life.crashed_at.as_deref(), Some(expected), "step {step}\n{}", life.log());
        life.heals_and_ends();
    }
}

#[test]
fn two_crashes_are_no_worse_than_one() {
    for first in 0..24 {
        for second in 0..12 {
            let mut life = world();
            life.fate = Fate::LandsUnheard { flight: seconds(9) };
            life.crash_after = Some(first);
            life.run_until(at(70));
            life.revoke();
            life.crash_after = Some(second);
            life.run_until(at(90));
            life.heals_and_ends();
        }
    }
}
