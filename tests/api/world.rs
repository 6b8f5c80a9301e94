//! One control plane for all tests of this binary, and a namespace for each.

use std::sync::atomic::{AtomicUsize, Ordering};

use instance_access::admission::{self, ServiceAccount, Standing};
use lab::{Lab, Options};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::common::{Person, Refusal, install, kubectl, operator_account, writers};

/// Never dropped: the lab's warden ends it with this process.
static LAB: OnceCell<Lab> = OnceCell::const_new();
static NAMESPACES: AtomicUsize = AtomicUsize::new(0);

/// A namespace of a test's own, and the people in it.
pub struct World {
    pub lab: &'static Lab,
    pub namespace: String,
    /// `system:masters`: RBAC refuses nothing, so that a refusal is ours.
    pub admin: Person,
    /// A developer, and so is bob.
    pub alice: Person,
    pub bob: Person,
    pub operator: Person,
}

impl World {
    pub async fn person(&self, user: &str) -> Person {
        Person::of(self.lab, user, &self.namespace).await.unwrap()
    }

    pub async fn service_account(&self, account: &str) -> Person {
        let account: ServiceAccount = account.parse().unwrap();
        Person::service_account(self.lab, &account, &self.namespace).await.unwrap()
    }
}

pub async fn world() -> World {
    let start = async || {
        let lab = Lab::start(Options::control_plane_only()).await.unwrap();
        install(&lab, true).await.unwrap();
        lab
    };
    let lab = LAB.get_or_init(start).await;
    let namespace = format!("test-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    kubectl(lab, "admin", &["create", "namespace", &namespace]).await.unwrap();
    let person = async |user| Person::of(lab, user, &namespace).await.unwrap();
    let (admin, alice, bob) = (person("admin").await, person("alice").await, person("bob").await);
    let operator = Person::service_account(lab, &operator_account(), &namespace).await.unwrap();
    World { lab, namespace, admin, alice, bob, operator }
}

/// How the operator sees each piece of its own protection, with its own rights, in the order in which it looks.
pub async fn standings(operator: &Person) -> Vec<(String, Standing)> {
    let mut standings = Vec::new();
    for piece in admission::pieces(&writers()) {
        standings.push((piece.title(), piece.look(&operator.client()).await.unwrap()));
    }
    standings
}

/// Asserts that it was refused, by the rule whose words these are.
#[track_caller]
pub fn refused(answer: Result<Value, Refusal>, words: &str) -> Refusal {
    match answer {
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(text.contains(words), "refused, but not with {words:?}: {text}");
            refusal
        }
        Ok(object) => panic!("{words:?} did not refuse: {object}"),
    }
}

/// The managers of the fields of an object that own something at a path of `f:…` keys.
pub fn owners(object: &Value, path: &[&str]) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let owning = entries.filter(|entry| {
        let mut place = &entry["fieldsV1"];
        path.iter().all(|part| {
            place = &place[format!("f:{part}")];
            !place.is_null()
        })
    });
    let mut owners: Vec<_> = owning.map(|entry| entry["manager"].as_str().unwrap_or_default().to_owned()).collect();
    // The API server orders them by the second of their last write.
    owners.sort();
    owners
}

/// Asserts that answers to the same wish are the same.
///
/// The first may differ from the second in the resourceVersion: a create stores no status, and the first update stores
/// the CRD's default of it. That is so without any policy of ours, and once.
#[track_caller]
pub fn assert_unchanged(answers: &[Value]) {
    let version = |answer: &Value| answer["metadata"]["resourceVersion"].clone();
    let [first, second, rest @ ..] = answers else { panic!("two answers at least") };
    let mut first = first.clone();
    first["metadata"]["resourceVersion"] = version(second);
    assert_eq!(&first, second);
    for answer in rest {
        assert_eq!(answer, second);
    }
}
