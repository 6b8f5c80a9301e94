//! What a leader hands to the next one about the pieces that it saw stand, as the text of an annotation.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Version;
use crate::domain::time::whole_second;

/// Whose word counts: that of every release of the same era. To be raised with a release that enforces what an older one
/// should have, and did not: a hole that was closed in a policy, or a field that only a policy guards and that the CRDs of
/// this release bring, so that for a moment of the upgrade nothing guards it. Then what was made before is believed no more,
/// as after a gap.
pub const ERA: u32 = 1;

/// The longest text that is read: six times what the pieces of this release take.
const BYTES_MAX: usize = 16 * 1024;

/// What stood, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
// Of a field that we do not know, we do not know what it takes back.
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vouched {
    era: u32,
    /// See `Lookout`; whole seconds.
    told_time: Timestamp,
    /// None: nothing was seen to change otherwise than an upgrade does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen_time: Option<Timestamp>,
    /// Uid and generation, by kind and name.
    pieces: BTreeMap<String, (String, i64)>,
}

impl Vouched {
    /// Times are kept to the second, as Kubernetes does: what [`covers`](super::Enforcement::covers) says is the same.
    pub(super) fn new<'a>(
        told_time: Timestamp,
        seen_time: Timestamp,
        versions: impl Iterator<Item = (&'a str, &'a Version)>,
    ) -> Self {
        let pieces =
            versions.map(|(name, version)| (name.to_owned(), (version.uid.clone(), version.generation))).collect();
        let seen_time = (seen_time > Timestamp::MIN).then(|| whole_second(seen_time));
        Self { era: ERA, told_time: whole_second(told_time), seen_time, pieces }
    }

    /// Reads what a leader wrote.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn read(text: &str) -> Result<Self, Unread> {
        if text.len() > BYTES_MAX {
            return Err(Unread::Long);
        }
        let vouched: Self = serde_json::from_str(text).map_err(Unread::Text)?;
        if vouched.era == ERA { Ok(vouched) } else { Err(Unread::Era(vouched.era)) }
    }

    /// As [`Vouched::read`] reads it.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data with names for keys")
    }

    pub(super) fn told_time(&self) -> Timestamp {
        self.told_time
    }

    pub(super) fn seen_time(&self) -> Timestamp {
        self.seen_time.unwrap_or(Timestamp::MIN)
    }

    pub(super) fn into_versions(self) -> BTreeMap<String, Version> {
        let version = |(uid, generation)| Version { uid, generation, inherited: true };
        self.pieces.into_iter().map(|(name, piece)| (name, version(piece))).collect()
    }
}

/// Why what a leader wrote is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// Nobody of us writes that much.
    #[error("it is longer than {BYTES_MAX} bytes")]
    Long,
    /// It is damaged, or a later release's.
    #[error("it cannot be read")]
    Text(#[source] serde_json::Error),
    /// What that release enforced is not what this one takes for enough, or the other way round.
    #[error("it is of era {0}, and this release is of era {ERA}: what was made before is believed no more")]
    Era(u32),
}
