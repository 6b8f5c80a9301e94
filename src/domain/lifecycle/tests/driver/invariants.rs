//! What must hold after every step of every history: I1 to I6, as far as one moment can show them.

use super::*;
use crate::domain::digest::grant_id;

impl Life {
    pub(super) fn redeem(&mut self, instance_id: &str, key: &PublicKey) {
        let status = self.status();
        let grant = status.grant.as_ref().expect("I2: a push without a grant");
        assert!(condition::is_true(&status.conditions, ConditionType::Approved), "I2: a push without approval");
        assert!(self.unreadable.is_empty(), "I2: a push though nobody knows whether it was denied\n{}", self.log());
        assert!(status.revocation.is_none(), "I2: a push after the end was begun\n{}", self.log());
        assert!(plus(plus(self.now, PUSH_TIMEOUT), KEY_WINDOW) <= grant.expiration_time.0, "I1: too late a push");
        assert_eq!(status.instance.as_ref().map(|facts| facts.instance_id.as_str()), Some(instance_id));
        assert_eq!(status.key.as_ref().map(|facts| facts.fingerprint.as_str()), Some(key.fingerprint()));
        let asked = self.object.as_ref().and_then(|object| object.spec.target.node_name.as_deref());
        if let Some(node) = asked.filter(|_| self.nodes.seen && self.nodes.failing.is_none()) {
            let is_now = self.nodes.find(node).and_then(|node| node.instance().ok()).map(|instance| instance.id);
            assert_eq!(
                is_now.as_ref().map(InstanceId::as_str),
                Some(instance_id),
                "I2: the node is another instance now"
            );
        }
        self.redeemed += 1;
        let intended = self
            .records
            .iter()
            .filter(|(_, record)| {
                matches!(record.kind, RecordKind::GrantIntended | RecordKind::PushIntended)
                    && record.grant_id.as_deref() == Some(&grant.id)
            })
            .count();
        assert!(self.redeemed <= intended, "I5: a push without its record\n{}", self.log());
        self.note("push left");
    }

    /// I2, by another way than the code's: who asks for another is named for it by the very policy that was granted on,
    /// and says until when.
    pub(super) fn is_delegated(&self) {
        let object = self.view.as_ref().expect("a push is planned for something");
        let spec = &object.spec;
        let (Some(subject), Some(requester)) = (&spec.subject, &spec.requester) else { return };
        if subject.username == requester.username {
            return;
        }
        let decided = object.status.as_ref().and_then(|status| status.policy.as_ref());
        let delegates = self.policies.iter().filter(|policy| {
            decided.is_none_or(|pin| policy.metadata.name.as_deref() == Some(&pin.name))
                && policy.spec.effect == PolicyEffect::Allow
        });
        let may = delegates.flat_map(|policy| policy.spec.delegates.iter().flatten().map(move |it| (policy, it)));
        let found = may.into_iter().any(|(policy, delegate)| {
            let account = &delegate.service_account;
            let by_name = |named: &PolicySubject| named.kind == SubjectKind::User && named.name == subject.username;
            let asserts = match &delegate.subject_usernames {
                None => policy.spec.subjects.iter().any(by_name),
                Some(all) => all.iter().any(|one| one == "*" || *one == subject.username),
            };
            let made = object.metadata.creation_timestamp.as_ref().expect("the API server says when it was made").0;
            let latest = plus(made, seconds(u64::try_from(delegate.max_window_seconds).unwrap()));
            asserts
                && requester.username == format!("system:serviceaccount:{}:{}", account.namespace, account.name)
                && spec.end_time.as_ref().is_some_and(|end| end.0 <= latest)
        });
        assert!(found, "I2: a push is planned for {}, for whom nobody may ask so\n{}", subject.username, self.log());
    }

    /// I4, by another way than the code's: whoever is asked for said yes to exactly this, each another than alice.
    fn is_approved_by_others(&self, object: &InstanceAccess) {
        let pin = object.status.as_ref().and_then(|status| status.policy.as_ref()).expect("a grant names its policy");
        let policy = self.policies.iter().find(|policy| policy.metadata.name.as_deref() == Some(&pin.name));
        let Some(approval) = policy.and_then(|policy| policy.spec.approval.as_ref()) else { return };
        let digest = spec_digest(&object.spec);
        let yes: BTreeSet<&str> = self
            .decisions
            .iter()
            .map(|decision| &decision.spec)
            .filter(|spec| {
                spec.decision == DecisionKind::Approve
                    && spec.request_ref.uid == self.uid()
                    && spec.request_ref.spec_digest.as_ref() == Some(&digest)
            })
            .filter_map(|spec| spec.approver.as_ref())
            .filter(|who| {
                let is_robot = delegates::is_robot(who);
                let by_kind = |named: &PolicySubject| match named.kind {
                    SubjectKind::ServiceAccount => is_robot,
                    SubjectKind::User | SubjectKind::Group => !is_robot && who.groups.contains(&named.name),
                };
                approval.approvers.iter().any(by_kind)
            })
            .map(|who| who.username.as_str())
            .filter(|who| *who != "alice" && object.spec.requester.as_ref().is_some_and(|it| it.username != *who))
            .collect();
        let count = usize::try_from(approval.count).unwrap();
        assert!(yes.len() >= count, "I4: granted on the word of {yes:?}, asked were {count}\n{}", self.log());
        assert!(!self.is_closed(), "I4: granted, though somebody said no\n{}", self.log());
        let told = &object.status.as_ref().unwrap().approvals;
        assert!(told.len() >= count && told.iter().all(|told| yes.contains(told.approver.as_str())), "I4: {told:?}");
    }

    /// By another way than the code's: with this grant, no more live than the policy's limits say.
    fn is_within_limits(&self, object: &InstanceAccess) {
        let pin = object.status.as_ref().and_then(|status| status.policy.as_ref()).expect("a grant names its policy");
        let policy = self.policies.iter().find(|policy| policy.metadata.name.as_deref() == Some(&pin.name));
        let Some(limits) = policy.and_then(|policy| policy.spec.limits) else { return };
        let who = |object: &InstanceAccess| {
            let asserted = object.spec.subject.as_ref().map(|subject| subject.username.clone());
            asserted.unwrap_or_else(|| object.spec.requester.as_ref().unwrap().username.clone())
        };
        let instance_id =
            |object: &InstanceAccess| object.status.as_ref().unwrap().instance.as_ref().unwrap().instance_id.clone();
        let live = |is_alike: &dyn Fn(&InstanceAccess) -> bool, limit: Option<i32>| {
            let live = 1 + self.others.iter().filter(|other| !is_over(other) && is_alike(other)).count();
            let fits = limit.is_none_or(|limit| live <= usize::try_from(limit).unwrap());
            assert!(fits, "{live} live grants, the limits are {limits:?}\n{}", self.log());
        };
        live(&|other| who(other) == who(object), limits.active_per_subject);
        live(&|other| instance_id(other) == instance_id(object), limits.active_per_instance);
    }

    /// Whether somebody said no whose no counts.
    pub(super) fn is_closed(&self) -> bool {
        let approvals = self.policies.iter().filter_map(|policy| policy.spec.approval.as_ref());
        let named: Vec<&str> =
            approvals.flat_map(|approval| &approval.approvers).map(|subject| subject.name.as_str()).collect();
        let requester = self.object.as_ref().and_then(|object| object.spec.requester.as_ref());
        let may_robot = requester.is_some_and(delegates::is_robot) || named.contains(&"argocd/robot");
        self.decisions.iter().map(|decision| &decision.spec).any(|spec| {
            let Some(who) = &spec.approver else { return false };
            spec.decision != DecisionKind::Approve
                && spec.request_ref.uid == self.uid()
                && (who.username == "alice"
                    || may_robot && delegates::is_robot(who)
                    || who.groups.iter().any(|group| named.contains(&group.as_str())))
        })
    }

    fn is_readable(&self) -> bool {
        self.keys.iter().any(|key| key.from <= self.now && self.now < key.until)
    }

    /// I1 to I6, as far as one moment can show them.
    pub(super) fn invariants(&mut self) {
        let now = self.now;
        let Some(object) = &self.object else {
            assert!(
                self.finalizer_stripped || !self.is_readable(),
                "I6: the object is gone and a key readable\n{}",
                self.log()
            );
            return;
        };
        let status = object.status.clone().unwrap_or_default();
        let holds = |type_| condition::is_true(&status.conditions, type_);
        if let Some(grant) = &status.grant {
            let expiration = grant.expiration_time.0;
            for key in self.keys.iter().filter(|key| key.until > now) {
                assert!(
                    key.until <= expiration,
                    "I1: a key is readable until {}, promised was {expiration}\n{}",
                    key.until,
                    self.log()
                );
            }
            assert!(
                self.promise.is_none_or(|promise| expiration <= promise),
                "I3: the end moved later\n{}",
                self.log()
            );
            self.promise = Some(expiration);
            // I3, of what binds its sessions: each number only ever becomes stricter.
            let bounds = grant.session.map_or([None; 3], |rules| {
                [rules.max_sessions, rules.idle_timeout_seconds, rules.drain_seconds.map(|seconds| -seconds)]
            });
            for (before, bound) in self.bounds.into_iter().zip(bounds) {
                let is_kept = before.is_none_or(|before| bound.is_some_and(|bound| bound <= before));
                assert!(is_kept, "I3: a session is bound less: {before:?}, then {bound:?}\n{}", self.log());
            }
            self.bounds = bounds;
            let digest = status.spec_digest.clone().unwrap();
            assert_eq!(grant.id, grant_id(&self.uid(), &digest), "I3");
            // Also of a request that was made again.
            let what = [object.metadata.namespace.clone(), object.metadata.name.clone(), Some(digest)];
            match self.grants.insert(what, grant.id.clone()) {
                None => {
                    assert!(self.unreadable.is_empty(), "I4: granted though nobody knows whether it was denied");
                    self.is_approved_by_others(object);
                    self.is_within_limits(object);
                }
                Some(first) => assert_eq!(first, grant.id, "I3: two grants of one request\n{}", self.log()),
            }
            for time in [grant.start_time.0, expiration] {
                assert_eq!(time, whole_second(time));
            }
            assert!(
                self.records.iter().any(|(_, record)| record.kind == RecordKind::GrantIntended),
                "I5: a grant without record"
            );
        } else {
            assert!(self.promise.is_none(), "I3: the grant is gone");
        }
        if holds(ConditionType::Ended) && !holds(ConditionType::Denied) {
            assert!(!self.is_readable(), "I1: ended, and a key is readable\n{}", self.log());
            let end = status.end_time.as_ref().expect("an end has a time").0;
            assert!(end <= now && end == whole_second(end));
            if status.grant.is_some() && status.audit.is_some() {
                assert!(
                    self.records.iter().any(|(_, record)| record.kind == RecordKind::Ended),
                    "I5: a pointer to no record"
                );
            }
        }
        assert!(!(holds(ConditionType::Approved) && holds(ConditionType::Denied)), "approved and denied");
        // What is said for ever.
        let is_over = holds(ConditionType::Ended) || holds(ConditionType::Denied);
        for said in &self.stuck {
            let found = condition::find(&status.conditions, said.type_).map(|found| (found.status, &found.reason));
            assert_eq!(found, Some((said.status, &said.reason)), "I3: {:?} was for ever\n{}", said.type_, self.log());
        }
        self.stuck = status
            .conditions
            .iter()
            .filter(|condition| {
                condition.status == ConditionStatus::True
                    && matches!(condition.type_, ConditionType::Approved | ConditionType::Denied | ConditionType::Ended)
                    || is_over
            })
            .cloned()
            .collect();
        for condition in &status.conditions {
            assert!(condition.message.chars().count() <= 2048 && !condition.message.is_empty());
            assert!(!condition.message.contains(KEY_BODY), "{}", condition.message);
            assert_eq!(condition.last_transition_time.0, whole_second(condition.last_transition_time.0));
        }
    }

    pub(super) fn is_bounded(&self, record: &Record) {
        let text = serde_json::to_string(record).unwrap();
        assert!(!text.contains(KEY_BODY), "key material in the trail: {text}");
        assert!(text.len() < 32 << 10, "a record of {} bytes", text.len());
    }

    /// Everything heals; whatever was granted must come to its end, with its record, and what was deleted must go.
    pub fn heals_and_ends(&mut self) {
        self.fate = Fate::Lands { queue: Duration::ZERO, flight: Duration::ZERO };
        (self.look_failure, self.look_delay, self.pace, self.lagging, self.audit_works) =
            (None, Duration::ZERO, Duration::ZERO, false, true);
        (self.nodes.seen, self.nodes.failing) = (true, None);
        (self.policies_read, self.requests_read, self.sight.rereading_since_time) = (true, true, None);
        (self.book.is_read, self.book.works) = (true, true);
        self.sync();
        self.settle();
        // Out of the audit trail's retry.
        self.run_until(plus(self.now, AUDIT_RETRY));
        let Some(grant) = self.status().grant else {
            if self.object.as_ref().is_some_and(|object| object.metadata.deletion_timestamp.is_some()) {
                panic!("deleted before it was granted, and still there\n{}", self.log());
            }
            return;
        };
        self.run_until(grant.expiration_time.0.max(plus(self.now, AUDIT_RETRY)));
        if let Some(object) = &self.object {
            assert!(object.metadata.deletion_timestamp.is_none(), "I6: deleted, and still there\n{}", self.log());
            let status = self.status();
            assert!(condition::is_true(&status.conditions, ConditionType::Ended), "I6: no end\n{}", self.log());
            assert!(status.audit.is_some(), "I5: the end's record is missing");
            assert!(status.revocation.is_some_and(|revocation| revocation.key_window_closed_time.is_some()));
        }
        let ended = self.records.iter().rev().find(|(_, record)| record.kind == RecordKind::Ended);
        let (_, ended) = ended.unwrap_or_else(|| panic!("I5: an end without record\n{}", self.log()));
        assert!(ended.cause.is_some() && ended.end_time.is_some() && ended.grant_id.is_some());
        assert!(self.landed <= self.redeemed);
    }

    pub fn landed(&self) -> usize {
        self.landed
    }
}
