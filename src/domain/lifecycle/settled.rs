//! When nothing is left to do for a request, whatever happens in the world.
//!
//! A hundred thousand requests that are over lie in memory beside the ones that live. Nobody asks `next` about those: it
//! would answer with the empty plan, and be asked again at every change of a policy.

use crate::api::InstanceAccess;

use super::is_over;

/// Whether a request is over and owes nothing: whatever the world is, `next` has nothing to do for it, and no time to
/// look again. What changes that is another version of the object, or that it is gone.
///
/// It holds for whoever has told the census of this version, by which a place that was claimed is given back; one that was
/// claimed after that is the shell's to give back, which asks nothing any more.
pub fn is_settled(request: &InstanceAccess) -> bool {
    let Some(status) = &request.status else { return false };
    let generation = request.metadata.generation.unwrap_or_default();
    is_over(request)
        // It waits for our finalizer, and for its entry in the ledger.
        && request.metadata.deletion_timestamp.is_none()
        // The record of its end is owed.
        && (status.grant.is_none() || status.audit.is_some())
        && status.spec_digest.is_some()
        && status.observed_generation == Some(generation)
        && status.conditions.iter().all(|condition| condition.observed_generation == generation)
}
