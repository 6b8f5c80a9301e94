//! Looks after what guards the requests: admission policies, bindings and CRDs must stand as this version ships them.
//!
//! ```text
//! a watch on each by name ──┐
//! a clock, every 10 s ──────┴─▶ a look at all of them ─▶ Lookout ─▶ who waits, pushes, or is asked for readiness
//! ```
//! The watches say only that it is time to look: so a deaf one costs seconds, and what is believed was read, by a quorum,
//! at one moment. What follows from it is decided in `domain`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::{Piece, ServiceAccount, Standing, Writers, pieces};
use crate::domain::enforcement::{self, Enforcement, Lookout, Looks, Mark, State, Vouched};
use crate::kubernetes::{again, patient, watch_config};
use crate::telemetry::chain;

use super::Shared;
use super::turn::wake_all;

/// Gap between two looks while all stands: what a deaf watch costs at most.
const INTERVAL: Duration = Duration::from_secs(10);
/// Gap between two looks while it does not, or could not be looked at: people wait.
const RETRY: Duration = Duration::from_secs(2);
/// Least gap between two looks, whatever the watches say: a flood of edits costs ten looks a second.
const PACE: Duration = Duration::from_millis(100);
/// The longest that one look may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Debug, Default)]
pub struct Guard {
    lookout: Mutex<Lookout>,
    /// That it is time to look.
    news: Arc<Notify>,
}

impl Guard {
    /// Goes on from what the leader before us wrote, if it is to be believed.
    pub fn after(now: Timestamp, vouched: Option<&str>) -> Self {
        let lookout = match vouched.map(Vouched::read) {
            None => Lookout::default(),
            Some(Ok(vouched)) => Lookout::after(now, vouched),
            Some(Err(error)) => {
                tracing::warn!(
                    error = chain(&error),
                    "what the last leader said of what guards the requests is not believed; it is judged by its own account"
                );
                Lookout::default()
            }
        };
        Self { lookout: Mutex::new(lookout), news: Arc::default() }
    }

    /// The API server has gone back to an older state: what was seen of it before proves nothing.
    pub fn doubt(&self) {
        self.with(Lookout::doubt);
    }

    /// What the next leader goes on from.
    pub fn vouched(&self) -> Option<String> {
        self.with(|lookout| lookout.vouched().map(Vouched::text))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Lookout) -> T) -> T {
        change(&mut self.lookout.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it stands now.
    pub fn enforcement(&self, now: Timestamp) -> Enforcement {
        self.with(|lookout| lookout.enforcement(now))
    }

    /// The same, as requests are judged by it, and how many looks there were.
    pub fn judged(&self, now: Timestamp) -> (Enforcement, Looks) {
        self.with(|lookout| (lookout.judged(now), lookout.looks()))
    }

    /// The first list of requests is through.
    pub fn listed(&self) {
        self.with(Lookout::listed);
        self.look_soon();
    }

    /// Somebody waits for a look that is begun from now on.
    pub fn look_soon(&self) {
        self.news.notify_one();
    }
}

/// Looks now and then, and whenever a watch says so, until it is stopped; wakes everybody when the answer changes.
pub async fn keep_enforcement(shared: Arc<Shared>, stop: CancellationToken) {
    let news = Arc::clone(&shared.guard.news);
    let mut watches = JoinSet::new();
    let mut known: Option<(Writers, Vec<Piece>)> = None;
    let mut told = Enforcement::Unseen;
    loop {
        shared.guard.with(Lookout::begins);
        // History may have been undone since the last one: whoever was judged meanwhile was told nothing, and is to be woken.
        if shared.guard.judged((shared.clock)()).0 == Enforcement::Unseen {
            told = Enforcement::Unseen;
        }
        let look = async {
            let (writers, pieces) = match &mut known {
                Some(known) => known,
                none => {
                    let writers = Writers::new(who_we_are(&shared.client).await?, shared.gateways.clone());
                    let pieces = pieces(&writers);
                    for piece in &pieces {
                        watches.spawn(watch(Arc::clone(&shared), piece.clone(), Arc::clone(&news), stop.clone()));
                    }
                    none.insert((writers, pieces))
                }
            };
            let seen = try_join_all(pieces.iter().map(|piece| look_at(&shared.client, piece))).await?;
            Ok::<_, LookError>((seen, remedy(writers)))
        };
        let looked = tokio::select! {
            () = stop.cancelled() => break,
            looked = tokio::time::timeout(TIMEOUT, look) => looked.unwrap_or(Err(LookError::Timeout)),
        };
        let now = (shared.clock)();
        match looked {
            Ok((seen, remedy)) => shared.guard.with(|lookout| lookout.looked(now, &seen, &remedy)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "a look at what guards the requests failed, trying again");
                shared.guard.with(|lookout| lookout.failed(&chain(&error)));
            }
        }
        let (enforcement, _) = shared.guard.judged(now);
        if enforcement != told {
            tell(&shared, &enforcement);
            wake_all(&shared);
            told = enforcement;
        }
        let is_sure = told.stands() && !shared.guard.with(|lookout| lookout.is_unsure());
        let rest = if is_sure { INTERVAL } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => break,
            () = async { tokio::time::sleep(PACE).await; news.notified().await } => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    while watches.join_next().await.is_some() {}
}

fn tell(shared: &Shared, enforcement: &Enforcement) {
    match enforcement {
        Enforcement::Unseen => {}
        Enforcement::Missing(findings) => {
            shared.metrics.count_enforcement_loss();
            tracing::error!(%findings, "what guards the requests does not stand; nothing is granted and no key is pushed");
        }
        Enforcement::Stands { since_time } => {
            tracing::info!(%since_time, "what guards the requests stands; requests made before are refused unless granted");
        }
    }
}

/// Asks the API server, which cannot be wrong about it, as a setting could.
async fn who_we_are(client: &Client) -> Result<ServiceAccount, LookError> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let (params, question) = (PostParams::default(), SelfSubjectReview::default());
    let review = again(|| api.create(&params, &question)).await?;
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
    ServiceAccount::of_username(&user).ok_or(LookError::NoServiceAccount { user })
}

async fn look_at(client: &Client, piece: &Piece) -> Result<enforcement::Piece, LookError> {
    let state = match piece.look(client).await {
        Ok(Standing::Sound { uid, generation, changed_time }) => State::Sound(Mark { uid, generation, changed_time }),
        Ok(Standing::Absent { needed: false }) => State::NotNeeded,
        Ok(Standing::Absent { needed: true }) => State::Wrong("is missing".to_owned()),
        Ok(Standing::Bent(how)) => State::Wrong(how.to_owned()),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            State::Hidden("may not be looked at; apply examples/operator-rbac.yaml of this version".to_owned())
        }
        Err(error) => return Err(error.into()),
    };
    Ok(enforcement::Piece { name: piece.title(), needed: piece.is_needed(), state })
}

fn remedy(writers: &Writers) -> String {
    format!(
        "apply what instance-access admission {} and instance-access crds print, of the operator's version; delete first what an apply does not mend",
        writers.flags()
    )
}

/// Why a look came to no answer.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the API server did not answer within {TIMEOUT:?}")]
    Timeout,
    #[error("the API server did not answer")]
    Ask(#[source] Box<kube::Error>),
    #[error(
        "the operator runs as {user:?}, which is no service account; run it under the one that instance-access admission --operator-service-account names, as examples/operator-rbac.yaml makes it"
    )]
    NoServiceAccount { user: String },
}

impl From<kube::Error> for LookError {
    fn from(error: kube::Error) -> Self {
        Self::Ask(Box::new(error))
    }
}

/// Says that it is time to look, whenever something happens to a piece.
async fn watch(shared: Arc<Shared>, piece: Piece, news: Arc<Notify>, stop: CancellationToken) {
    // By name, which is all that the operator's role lets it watch.
    let config = watch_config().fields(&format!("metadata.name={}", piece.name()));
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(shared.client.clone(), piece.resource());
    let mut stream = std::pin::pin!(patient(watcher(api, config)));
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            // That it lists is no news.
            Some(Ok(watcher::Event::Init)) => {}
            Some(Ok(_)) => news.notify_one(),
            // Kubernetes below 1.36 does not know the kind; the looks go on.
            Some(Err(error)) if !piece.is_needed() && is_unserved(&error) => {}
            Some(Err(error)) => {
                shared.metrics.count_watch_error("enforcement");
                tracing::warn!(
                    piece = piece.title(),
                    error = chain(&error),
                    "the watch over what guards the requests broke, trying again"
                );
            }
            None => return,
        }
    }
}

fn is_unserved(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}
