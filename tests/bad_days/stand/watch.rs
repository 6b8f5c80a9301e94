//! What status says.

use std::time::Duration;

use anyhow::Context;
use instance_access::api::{Condition, InstanceAccess};
use jiff::{SignedDuration, Timestamp};

use super::{Ask, Day, Outcome, SOON, Stand, shared};
use crate::days;

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_slow_machine_excuses_no_end_but_that_for_which_no_time_was_left,
        whoever_waits_for_a_grant_that_cannot_come_is_told_why_at_once,
    ]
}

async fn a_slow_machine_excuses_no_end_but_that_for_which_no_time_was_left() -> Outcome {
    let rows = [
        (("Expired", false, 8.0, 0.9), true),
        (("Expired", false, 19.0, 4.9), true),
        (("Expired", false, 0.5, 0.9), false),
        // Deaf for longer than there was time, on a machine that was busy for a while.
        (("Expired", false, 8.0, 16.0), false),
        (("Expired", true, 8.0, 0.9), false),
        (("Revoked", false, 8.0, 0.9), false),
        (("Released", false, 8.0, 0.9), false),
    ];
    for ((reason, has_grant, stolen, lived), expected) in rows {
        let found = is_of_a_slow_machine(reason, has_grant, stolen, lived);
        anyhow::ensure!(found == expected, "{reason}, {has_grant}, {stolen}, {lived}: {found}");
    }
    Ok(())
}

async fn whoever_waits_for_a_grant_that_cannot_come_is_told_why_at_once() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let ask = || Ask::new("never-granted").instance(&id).ends_in(50);
    let asked = stand.granted_for(ask).await.map(drop);
    let waited = stand.until_granted("never-granted").await.map(drop);
    for told in [asked, waited] {
        let told = format!("{:#}", told.err().context("it was granted")?);
        anyhow::ensure!(told.contains("never-granted ended") && told.contains("no time left for access"), "{told}");
    }
    Ok(())
}

/// The conditions of a request, for a failure's message.
pub fn shown(object: &InstanceAccess) -> String {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let shown: Vec<String> = conditions
        .map(|Condition { type_, status, reason, message, .. }| format!("{type_:?}={status:?} {reason}: {message}"))
        .collect();
    if shown.is_empty() { "no conditions".to_owned() } else { shown.join(" | ") }
}

fn find<'a>(object: &'a InstanceAccess, type_: &str) -> Option<&'a Condition> {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|condition| format!("{:?}", condition.type_) == type_)
}

/// The reason of Active: the STATUS column.
pub fn reason(object: &InstanceAccess) -> &str {
    find(object, "Active").map_or("", |active| active.reason.as_str())
}

/// Whether a condition is so.
pub fn is(object: &InstanceAccess, type_: &str, status: &str) -> Result<InstanceAccess, String> {
    match find(object, type_) {
        Some(condition) if format!("{:?}", condition.status) == status => Ok(object.clone()),
        _ => Err(shown(object)),
    }
}

/// When the grant ends.
pub fn expiration(object: &InstanceAccess) -> anyhow::Result<Timestamp> {
    let grant = object.status.as_ref().and_then(|status| status.grant.as_ref());
    Ok(grant.with_context(|| format!("no grant: {}", shown(object)))?.expiration_time.0)
}

/// What a request is called, and the instance that it names.
pub fn named(object: &InstanceAccess) -> anyhow::Result<(String, String)> {
    let id = object.spec.target.instance_id.clone().context("it names an instance")?;
    Ok((object.metadata.name.clone().context("a name")?, id))
}

/// Whether a request may have ended because the machine was too slow for a grant of few seconds, and for nothing else: no grant
/// was made, since its time was over, and the machine took so much of that time that too little was left of it.
fn is_of_a_slow_machine(reason: &str, has_grant: bool, stolen: f64, lived: f64) -> bool {
    reason == "Expired" && !has_grant && stolen > STOLEN_MIN && lived < LIVED_MAX
}

/// Whoever asks for few seconds leaves some more than a grant takes; a machine that took less than this has not taken those.
const STOLEN_MIN: f64 = 2.0;
/// More than a grant takes, in seconds at the machine's pace: one, or two. Whoever had so many and granted nothing was deaf, or
/// waited for something else than the machine.
const LIVED_MAX: f64 = 5.0;
/// Until so long before its end a request may be granted: a key's life, and what a push may take.
const KEY_TIME: SignedDuration = SignedDuration::from_secs(70);

impl Stand {
    /// Waits until a request looks as it should.
    pub async fn until_within<T>(
        &self,
        name: &str,
        what: &str,
        bound: Duration,
        look: impl Fn(&InstanceAccess) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let what = format!("{name} to be {what}");
        let waited = lab::poll::until(&what, bound, async || match self.get(name).await {
            Ok(object) => look(&object),
            Err(error) => Err(format!("{error:#}")),
        });
        waited
            .await
            .with_context(|| format!("log of {}:\n{}", self.controller.log().display(), self.controller.log_of(name)))
    }

    /// Waits until Active has this reason, whose message holds all of `words`.
    pub async fn until(&self, name: &str, wanted: &str, words: &[&str]) -> anyhow::Result<InstanceAccess> {
        let object = self
            .until_within(name, wanted, SOON, |object| {
                if reason(object) == wanted { Ok(object.clone()) } else { Err(shown(object)) }
            })
            .await?;
        let message = &find(&object, "Active").context("Active is there")?.message;
        for word in words {
            anyhow::ensure!(message.contains(word), "{name}, {wanted}: {word:?} is not in: {message}");
        }
        Ok(object)
    }

    /// Waits until it is refused for this reason, in these words.
    pub async fn until_denied(&self, name: &str, wanted: &str, words: &[&str]) -> anyhow::Result<InstanceAccess> {
        let object = self.until(name, "Denied", words).await?;
        let denied = find(&object, "Denied").context("Denied is there")?;
        anyhow::ensure!(denied.reason == wanted, "{name}: {}", shown(&object));
        is(&object, "Stalled", "True").map_err(anyhow::Error::msg)?;
        anyhow::ensure!(object.status.as_ref().is_some_and(|status| status.grant.is_none()), "{name} has a grant");
        Ok(object)
    }

    /// alice asks for few seconds: on a machine so slow that too few of them are left for a grant, again, for what `ask` makes
    /// then. Returns the request that was granted.
    pub async fn granted_for(&self, ask: impl Fn() -> Ask) -> anyhow::Result<InstanceAccess> {
        self.given(ask, "Granted", |object| is(object, "Active", "True")).await
    }

    /// The same for a grant whose key is never pushed.
    pub async fn held_for(&self, ask: impl Fn() -> Ask) -> anyhow::Result<InstanceAccess> {
        let has_grant = |object: &InstanceAccess| expiration(object).map(|_| object.clone()).map_err(|e| e.to_string());
        self.given(ask, "given a grant", has_grant).await
    }

    async fn given(
        &self,
        ask: impl Fn() -> Ask,
        what: &str,
        look: impl Fn(&InstanceAccess) -> Result<InstanceAccess, String>,
    ) -> anyhow::Result<InstanceAccess> {
        for number in 1..=4 {
            let asked_time = Timestamp::now();
            let mut ask = ask();
            if number > 1 {
                ask.name += &format!("-{number}");
            }
            let name = &ask.name;
            let object = self.ask(ask.clone()).await?;
            let due = object.spec.end_time.as_ref().context("it asks for an end")?.0 - KEY_TIME;
            let object = match self.until_given(name, what, &look).await? {
                Ok(given) => return Ok(given),
                Err(ended) => ended,
            };
            let lived = lab::pace::seconds(asked_time, due).await;
            let stolen = due.duration_since(asked_time).as_secs_f64() - lived;
            let had = format!("of the time for a grant this machine took {stolen:.1} s, and left {lived:.1} s");
            let has_grant = expiration(&object).is_ok();
            let is_excused = is_of_a_slow_machine(reason(&object), has_grant, stolen, lived);
            anyhow::ensure!(is_excused, "{name} ended; {had}: {}\n{}", shown(&object), self.controller.log_of(name));
            eprintln!("{name}: asked for again: {had}");
        }
        anyhow::bail!("too slow a machine for a grant of so few seconds, four times")
    }

    /// Waits until a request is as it should be, or has ended, after which nothing comes any more.
    async fn until_given(
        &self,
        name: &str,
        what: &str,
        look: impl Fn(&InstanceAccess) -> Result<InstanceAccess, String>,
    ) -> anyhow::Result<Result<InstanceAccess, InstanceAccess>> {
        let ended = |object: &InstanceAccess| is(object, "Ended", "True").map(Err);
        self.until_within(name, what, SOON, |object| {
            look(object).map(Ok).or_else(|seen| ended(object).map_err(|_| seen))
        })
        .await
    }

    /// Waits until access is possible.
    pub async fn until_granted(&self, name: &str) -> anyhow::Result<InstanceAccess> {
        let given = self.until_given(name, "Granted", |object| is(object, "Active", "True")).await?;
        let log = || self.controller.log_of(name);
        given.map_err(|ended| anyhow::anyhow!("{name} ended, and is not granted: {}\n{}", shown(&ended), log()))
    }
}
