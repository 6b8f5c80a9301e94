//! `InstanceAccessPolicy`: who may get what.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, ConnectionMethod, KeyDelivery, KeyType};

/// Who may get access to what, for how long. An empty list matches nothing; `["*"]` is everything.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "instanceaccess.dev",
    version = "v1alpha1",
    kind = "InstanceAccessPolicy",
    plural = "instanceaccesspolicies",
    singular = "instanceaccesspolicy",
    shortname = "iap",
    category = "instance-access",
    status = "InstanceAccessPolicyStatus",
    derive = "PartialEq",
    doc = "Who may get access to which EC2 instances, and for how long.",
    printcolumn(name = "Effect", type_ = "string", json_path = ".spec.effect", description = "Allow or Deny"),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        description = "The highest that admits decides"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it is understood and in force"
    ),
    printcolumn(
        name = "Grants",
        type_ = "integer",
        json_path = ".status.activeGrants",
        description = "Live grants it decided"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Problem",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1,
        description = "What is wrong with it"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.effect != 'Allow' || has(self.ttl)").message("is required of an Allow policy: {defaultSeconds, maxSeconds}").field_path(".ttl").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("self.effect != 'Deny' || !(has(self.ttl) || has(self.keys) || has(self.reason) || has(self.ticket) || has(self.approval) || has(self.windows) || has(self.limits) || has(self.delegates) || has(self.conditions) || has(self.session))").message("a Deny policy has subjects, namespaces, targets, osUsers, connectionMethods and keyDelivery only: what else it held would narrow it in silence"))]
#[x_kube(validation = Rule::new("self.effect != 'Deny' || !has(self.targets.nodeLabels)").message("a Deny by a node's labels would not deny whoever asks for the same instance by its id or tags; name instanceIds, instanceTags, accounts, regions or vpcIds").field_path(".targets.nodeLabels").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!(has(self.session) && has(self.session.gatewayOnly) && self.session.gatewayOnly && has(self.keyDelivery)) || 'OnConnect' in self.keyDelivery").message("with gatewayOnly must be left out or name OnConnect, or nothing is admitted").field_path(".keyDelivery").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!(has(self.session) && has(self.session.end) && has(self.session.end.drainSeconds) && has(self.ttl)) || self.session.end.drainSeconds < self.ttl.defaultSeconds").message("must be less than spec.ttl.defaultSeconds, or a grant of that length opens no session").field_path(".session").reason(Reason::FieldValueForbidden))]
pub struct InstanceAccessPolicySpec {
    /// Allow, or Deny: a Deny that matches wins over every Allow.
    pub effect: Effect,
    /// Of several Allow policies that admit a request, the one with the highest priority decides; a tie: the first by
    /// name. Left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Who this is about.
    #[schemars(length(max = 256))]
    pub subjects: Vec<PolicySubject>,
    /// The namespaces of the requests that this is about, or ["*"].
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// The instances that this is about: every field that is present must match, and one at least must be present.
    pub targets: PolicyTargets,
    /// The logins that this is about, or ["*"].
    #[schemars(length(max = 64), inner(length(min = 1, max = 32)))]
    pub os_users: Vec<String>,
    /// The ways to the instance that this is about: Direct, Endpoint. Left out: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub connection_methods: Option<Vec<PolicyConnectionMethod>>,
    /// The ways of key delivery that this is about. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub key_delivery: Option<Vec<KeyDelivery>>,
    /// How long access may last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<PolicyTtl>,
    /// Which keys may be delivered. Left out: ED25519, and RSA of 2048 and 4096 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<PolicyKeys>,
    /// What spec.reason must look like. Left out: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<PolicyText>,
    /// What spec.ticket must look like. Left out: anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<PolicyText>,
    /// Whose consent is needed. Left out: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<PolicyApproval>,
    /// When access may be had: in any of these. A request outside of them is refused, and a grant ends when they close.
    /// Left out: at any time. An empty list is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub windows: Option<Vec<PolicyWindow>>,
    /// How much access at once. What is beyond it is refused for good (`LimitReached`); a lower limit ends no live grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PolicyLimits>,
    /// Who may ask for others, who are named by spec.subject of the request. Left out: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub delegates: Option<Vec<PolicyDelegate>>,
    /// Further conditions in CEL, all of which must be true: when access is granted, and at every look while it lives.
    /// Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub conditions: Option<Vec<PolicyCondition>>,
    /// What binds sessions through the gateway. It stands in status.grant.session of each grant; an edit reaches live
    /// grants where it makes them stricter. Left out: a session is bound by its grant's end alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<PolicySession>,
}

/// What a policy does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Effect {
    /// Admits it.
    Allow,
    /// Refuses it, whatever other policies say.
    Deny,
}

/// The kind of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SubjectKind {
    /// A person, by user name. Never matches a service account.
    User,
    /// A group of people. Matches a service account only if the group is one of service accounts
    /// (system:serviceaccounts…).
    Group,
    /// A service account, by namespace/name.
    ServiceAccount,
}

/// Who a policy is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind != 'ServiceAccount' || self.name.matches('^[^/]+/[^/]+$')").message("the name of a ServiceAccount is namespace/name, for example argocd/application-controller"))]
pub struct PolicySubject {
    /// User, Group or ServiceAccount.
    pub kind: SubjectKind,
    /// The user name, the group, or the service account's namespace/name. No patterns; a Group system:authenticated is
    /// everybody who is a person.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,
}

/// The instances that a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.accounts) || has(self.regions) || has(self.instanceIds) || has(self.instanceTags) || has(self.vpcIds) || has(self.nodeLabels)").message("must say which instances; for all of them write instanceIds: [\"*\"]"))]
pub struct PolicyTargets {
    /// AWS accounts, or ["*"].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 12)))]
    pub accounts: Option<Vec<String>>,
    /// AWS regions, or ["*"].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 32)))]
    pub regions: Option<Vec<String>>,
    /// EC2 instance ids, or ["*"].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 32)))]
    pub instance_ids: Option<Vec<String>>,
    /// A selector over the instance's EC2 tags. An empty selector matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_tags: Option<TagSelector>,
    /// VPC ids, or ["*"].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64)))]
    pub vpc_ids: Option<Vec<String>>,
    /// A selector over the labels of the Kubernetes node that spec.target.nodeName names. Matches no request by instanceId
    /// or tags, and so is not for a Deny. An empty selector matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_labels: Option<TagSelector>,
}

/// A selector over EC2 tags or a node's labels, in the form of a label selector. All of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagSelector {
    /// Tags or labels by exact value, for example {env: dev}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "match_labels_schema")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Tags or labels by operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub match_expressions: Option<Vec<TagExpression>>,
}

fn match_labels_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 50,
        "additionalProperties": { "type": "string", "maxLength": 256 },
    })
}

/// One requirement on one tag or label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? (has(self.values) && self.values.size() > 0) : !has(self.values) || self.values.size() == 0").message("In and NotIn need values; Exists and DoesNotExist take none"))]
pub struct TagExpression {
    /// The tag's or label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist. NotIn and DoesNotExist hold also where the tag or label is absent.
    pub operator: TagOperator,
    /// The values, for In and NotIn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 256)))]
    pub values: Option<Vec<String>>,
}

/// How a tag is compared, as in a label selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TagOperator {
    /// The tag is there, and its value is one of these.
    In,
    /// The tag is absent, or its value is none of these.
    NotIn,
    /// The tag is there.
    Exists,
    /// The tag is absent.
    DoesNotExist,
}

/// A way to the instance, as a policy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyConnectionMethod {
    /// Straight to an address of the instance.
    Direct,
    /// Through an EC2 Instance Connect Endpoint.
    Endpoint,
}

impl PolicyConnectionMethod {
    /// Whether it is the way that was chosen for a request. `Auto` is a wish, never a way.
    pub fn is(self, method: ConnectionMethod) -> bool {
        match self {
            Self::Direct => method == ConnectionMethod::Direct,
            Self::Endpoint => method == ConnectionMethod::Endpoint,
        }
    }
}

/// How long access may last, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.defaultSeconds <= self.maxSeconds").message("must not exceed maxSeconds").field_path(".defaultSeconds").reason(Reason::FieldValueForbidden))]
pub struct PolicyTtl {
    /// For a request that names no ttlSeconds.
    #[schemars(range(min = 120, max = 604_800))]
    pub default_seconds: i32,
    /// The most that a request may ask for; more is refused, not shortened.
    #[schemars(range(min = 120, max = 604_800))]
    pub max_seconds: i32,
}

/// Which keys may be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyKeys {
    /// ED25519, RSA. Left out: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2))]
    pub types: Option<Vec<KeyType>>,
    /// The least length of an RSA key in bits. Left out: 2048.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2048, max = 4096))]
    pub min_rsa_bits: Option<i32>,
}

/// What a text of the request must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyText {
    /// Whether it must be there. Left out: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// A regular expression (syntax of Rust's regex, as in RE2) that must match somewhere in it, if it is there; for the
    /// whole write ^…$.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub pattern: Option<String>,
}

/// Whose consent is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyApproval {
    /// How many people must approve, each another; nobody approves their own request.
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
    /// Who may approve. A service account only if it is named by its kind.
    #[schemars(length(max = 64))]
    pub approvers: Vec<PolicySubject>,
    /// Of each of these one must approve as well, each another person; they count towards count. For example
    /// [{kind: Group, name: security}]: with count 2 it takes one of security and one of the approvers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub one_from_each: Option<Vec<PolicySubject>>,
    /// How long a request waits for approval, in seconds from its creation. Left out: 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_592_000))]
    pub deadline_seconds: Option<i32>,
}

/// A time of the week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyWindow {
    /// The days, by the date at the window's start.
    #[schemars(length(min = 1, max = 7))]
    pub days: Vec<Weekday>,
    /// The first minute, for example 08:00, by the clock on the wall in the time zone.
    #[schemars(length(min = 5, max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,
    /// The minute after the last, for example 18:00. Not later than start: on the next day. The same as start: the whole
    /// day.
    #[schemars(length(min = 5, max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub end: String,
    /// The IANA time zone, for example Europe/Berlin.
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// How much access at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLimits {
    /// Live grants of one subject, as the same person, under whatever policy and in whatever namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub active_per_subject: Option<i32>,
    /// Live grants on one instance, of whomever and under whatever policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub active_per_instance: Option<i32>,
    /// Requests of one subject in any hour, counted when they are admitted: to be granted, or to wait for people or for
    /// their start. One that was refused at once does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub requests_per_hour: Option<i32>,
}

/// Who may ask for others: a service account, for example Argo CD's or Flux's, which applies what others wrote in Git.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDelegate {
    /// The delegate, by full name.
    pub service_account: ServiceAccountName,
    /// The user names that it may put into spec.subject, or ["*"], which is every person: a service account, and what else
    /// begins with system:, must be written out. Left out: those whom spec.subjects names as User or ServiceAccount. An
    /// empty list is nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 1024)))]
    pub subject_usernames: Option<Vec<String>>,
    /// The longest time from the making of a request to its spec.endTime, which a delegate must set, in seconds.
    #[schemars(range(min = 120, max = 2_592_000))]
    pub max_window_seconds: i32,
}

/// A service account by full name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountName {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A further condition in CEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCondition {
    /// Must be true; over request, subject, instance and now, for example has(instance.tags.owner). What cannot be
    /// evaluated, such as a field that is absent, admits nothing.
    #[schemars(length(min = 1, max = 2048))]
    pub expression: String,
    /// What the requester reads where it is not.
    #[schemars(length(min = 1, max = 512))]
    pub message: String,
}

/// What binds sessions through the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicySession {
    /// Whether only requests with keyDelivery: OnConnect are admitted: their key is on the instance for a minute after the
    /// gateway opened a session, and at no other time. Left out: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_only: Option<bool>,
    /// Sessions at once under one grant, in each replica of the gateway. Left out: as many as the gateway's
    /// --sessions-per-grant-max, which also bounds this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_sessions: Option<i32>,
    /// After how many seconds without a byte either way a session is cut. Left out: as the gateway's
    /// --idle-timeout-seconds; of the two the shorter counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86400))]
    pub idle_timeout_seconds: Option<i32>,
    /// How sessions go when the grant's time runs out. Left out: {strategy: Cut}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<PolicySessionEnd>,
}

/// How sessions go when the grant's time runs out. Whatever is open at expirationTime is cut then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.drainSeconds) == (self.strategy == 'Drain')").message("is for the strategy Drain, which needs it").field_path(".drainSeconds").reason(Reason::FieldValueForbidden))]
pub struct PolicySessionEnd {
    /// Cut: sessions are opened until expirationTime. Drain: none is opened in the last drainSeconds before it, so that
    /// nobody begins what would be cut in its middle; those that are open go on to expirationTime.
    pub strategy: SessionEndStrategy,
    /// How many seconds before expirationTime the last session is opened, for Drain. A request must ask for more time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub drain_seconds: Option<i32>,
}

/// How sessions go when the grant's time runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionEndStrategy {
    /// Opened and open until expirationTime.
    Cut,
    /// Opened until drainSeconds before it, open until expirationTime.
    Drain,
}

/// Whether a policy is in force. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAccessPolicyStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// How many live grants it decided; counted now and then, not at every grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub active_grants: Option<i32>,
}
