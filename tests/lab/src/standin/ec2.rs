//! EC2's Query API: DescribeInstances and DescribeInstanceConnectEndpoints.
//!
//! Source: Amazon EC2 API Reference 2016-11-15 (actions, error codes, pagination), the EC2 User Guide on filters
//! (50 filters, 200 values each; `*` is any characters, `?` none or one), and messages that users of AWS reported.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Shared;
use super::api::{Caller, Refusal};
use super::bucket::Lane;
use super::world::{Instance, endpoint_xml, state_code};
use super::xml::Xml;

const VERSION: &str = "2016-11-15";
/// What EC2 answers at most on one page, and without pages.
const PAGE_MAX: usize = 1000;
const PAGE_MIN: usize = 5;
const ENDPOINTS_PAGE_MAX: usize = 50;
const FILTERS_MAX: usize = 50;
const FILTER_VALUES_MAX: usize = 200;
const FILTER_VALUE_LENGTH_MAX: usize = 255;

/// A call's parameters.
#[derive(Debug, Default)]
pub(super) struct Form {
    single: BTreeMap<String, String>,
    lists: BTreeMap<String, BTreeMap<u32, String>>,
    filters: BTreeMap<u32, Filter>,
}

#[derive(Debug, Default)]
struct Filter {
    name: String,
    values: BTreeMap<u32, String>,
}

impl Form {
    pub(super) fn read(body: &[u8]) -> Self {
        let mut form = Self::default();
        for (key, value) in form_urlencoded::parse(body) {
            let parts: Vec<&str> = key.split('.').collect();
            match parts[..] {
                ["Filter", n, "Name"] if n.parse::<u32>().is_ok() => {
                    form.filters.entry(n.parse().expect("it is a number")).or_default().name = value.into_owned();
                }
                ["Filter", n, "Value", m] if n.parse::<u32>().is_ok() && m.parse::<u32>().is_ok() => {
                    let filter = form.filters.entry(n.parse().expect("it is a number")).or_default();
                    filter.values.insert(m.parse().expect("it is a number"), value.into_owned());
                }
                [name, n] if n.parse::<u32>().is_ok() => {
                    let list = form.lists.entry(name.to_owned()).or_default();
                    list.insert(n.parse().expect("it is a number"), value.into_owned());
                }
                _ => {
                    form.single.insert(key.into_owned(), value.into_owned());
                }
            }
        }
        form
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.single.get(name).map(String::as_str)
    }

    pub(super) fn action(&self) -> &str {
        self.get("Action").unwrap_or_default()
    }

    fn list(&self, name: &str) -> impl Iterator<Item = &String> {
        self.lists.get(name).into_iter().flat_map(BTreeMap::values)
    }

    /// The instances that a call names, for the journal and the faults.
    pub(super) fn named_instances(&self) -> Vec<String> {
        let by_filter = self.filters.values().filter(|it| it.name == "instance-id").flat_map(|it| it.values.values());
        self.list("InstanceId").chain(by_filter).cloned().collect()
    }

    /// Which bucket the call draws from.
    pub(super) fn lane(&self) -> Option<Lane> {
        match self.action() {
            "DescribeInstances" => {
                let is_narrow = !self.filters.is_empty()
                    || self.lists.contains_key("InstanceId")
                    || self.get("MaxResults").is_some();
                Some(if is_narrow { Lane::DescribeInstances } else { Lane::DescribeAllInstances })
            }
            "DescribeInstanceConnectEndpoints" => Some(Lane::DescribeEndpoints),
            _ => None,
        }
    }
}

/// An answer's body, and how many things are in it.
pub(super) type Done = (String, usize);

pub(super) fn perform(shared: &Shared, form: &Form, caller: &Caller, request_id: &str) -> Result<Done, Refusal> {
    match form.get("Version") {
        None => {
            return Err(Refusal::new("MissingParameter", "The request must contain the parameter Version"));
        }
        Some(VERSION) => {}
        Some(other) => {
            let text = format!("The requested version ({other}) of service AmazonEC2 does not exist");
            return Err(Refusal::new("NoSuchVersion", text));
        }
    }
    match form.action() {
        "DescribeInstances" => describe_instances(shared, form, caller, request_id),
        "DescribeInstanceConnectEndpoints" => describe_endpoints(shared, form, caller, request_id),
        "" => Err(Refusal::new("MissingAction", "The request is missing an action or a required parameter.")),
        other => {
            let text = format!("The action {other} is not valid for this web service.");
            Err(Refusal::new("InvalidAction", text))
        }
    }
}

fn describe_instances(shared: &Shared, form: &Form, caller: &Caller, request_id: &str) -> Result<Done, Refusal> {
    let ids: BTreeSet<&str> = form.list("InstanceId").map(String::as_str).collect();
    if let Some(bad) = ids.iter().find(|id| !is_instance_id(id)) {
        return Err(Refusal::new("InvalidInstanceID.Malformed", format!("Invalid id: \"{bad}\"")));
    }
    if !ids.is_empty() {
        for name in ["MaxResults", "NextToken"] {
            if form.get(name).is_some() {
                let parameter = if name == "MaxResults" { "maxResults" } else { "nextToken" };
                return Err(Refusal::new(
                    "InvalidParameterCombination",
                    format!("The parameter instancesSet cannot be used with the parameter {parameter}"),
                ));
            }
        }
    }
    let filters = filters(form, is_instance_filter)?;
    let page_max = page_max(form, PAGE_MIN, PAGE_MAX)?;
    let after = after(form)?;
    dry_run(form)?;

    let now = shared.clock.now();
    let is_visible = |it: &Instance| it.region == caller.region && it.account_id == caller.account_id;
    let candidates: Vec<_> = if ids.is_empty() {
        match exact_ids(&filters) {
            Some(ids) => ids
                .into_iter()
                .filter(|id| after.as_deref().is_none_or(|after| *id > after))
                .filter_map(|id| shared.world.instance(id, now))
                .filter(|it| is_visible(&it.instance))
                .collect(),
            None => {
                let mut all = shared.world.instances_after(after.as_deref(), now);
                all.retain(|it| is_visible(&it.instance));
                all
            }
        }
    } else {
        let found = |id: &&str| shared.world.instance(id, now).filter(|it| is_visible(&it.instance));
        let missing: Vec<&str> = ids.iter().copied().filter(|id| found(id).is_none()).collect();
        match missing[..] {
            [] => ids.iter().filter_map(found).collect(),
            [id] => {
                return Err(Refusal::new(
                    "InvalidInstanceID.NotFound",
                    format!("The instance ID '{id}' does not exist"),
                ));
            }
            _ => {
                return Err(Refusal::new(
                    "InvalidInstanceID.NotFound",
                    format!("The instance IDs '{}' do not exist", missing.join(", ")),
                ));
            }
        }
    };
    let page_max = if ids.is_empty() { page_max.unwrap_or(PAGE_MAX) } else { usize::MAX };

    let mut items = String::new();
    let mut count = 0;
    let mut last: Option<&str> = None;
    let mut next = None;
    for (examined, stored) in candidates.iter().enumerate() {
        let is_full = if shared.config.sparse_pages { examined >= page_max } else { count >= page_max };
        let is_match = filters.iter().all(|it| instance_matches(&stored.instance, it));
        if is_full && (shared.config.sparse_pages || is_match) {
            next = last.map(str::to_owned);
            break;
        }
        last = Some(&stored.instance.id);
        if is_match {
            items.push_str(&stored.xml);
            count += 1;
        }
    }
    Ok((envelope("DescribeInstancesResponse", "reservationSet", &items, next, request_id), count))
}

fn describe_endpoints(shared: &Shared, form: &Form, caller: &Caller, request_id: &str) -> Result<Done, Refusal> {
    let filters = filters(form, |name| {
        matches!(name, "instance-connect-endpoint-id" | "state" | "subnet-id" | "vpc-id" | "tag-key" | "tag-value")
            || name.starts_with("tag:")
    })?;
    let page_max = page_max(form, 1, ENDPOINTS_PAGE_MAX)?.unwrap_or(ENDPOINTS_PAGE_MAX);
    let after = after(form)?;
    dry_run(form)?;
    let ids: BTreeSet<&str> = form.list("InstanceConnectEndpointId").map(String::as_str).collect();
    for id in &ids {
        if shared.world.endpoint(id).is_none_or(|it| it.region != caller.region) {
            return Err(Refusal::new(
                "InvalidInstanceConnectEndpointId.NotFound",
                format!("The instance connect endpoint ID '{id}' does not exist"),
            ));
        }
    }
    let mut items = String::new();
    let mut count = 0;
    let mut last = None;
    let mut next = None;
    for endpoint in shared.world.endpoints_after(after.as_deref()) {
        let is_match = endpoint.region == caller.region
            && (ids.is_empty() || ids.contains(&*endpoint.id))
            && filters.iter().all(|(name, values)| {
                let value = match *name {
                    "instance-connect-endpoint-id" => &endpoint.id,
                    "state" => &endpoint.state,
                    "subnet-id" => &endpoint.subnet_id,
                    "vpc-id" => &endpoint.vpc_id,
                    // endpoints here have no tags
                    _ => return false,
                };
                values.iter().any(|pattern| wildcard(pattern, value))
            });
        if !is_match {
            continue;
        }
        if count == page_max {
            next = last;
            break;
        }
        items.push_str(&endpoint_xml(&endpoint, &caller.account_id));
        count += 1;
        last = Some(endpoint.id.clone());
    }
    let name = "DescribeInstanceConnectEndpointsResponse";
    Ok((envelope(name, "instanceConnectEndpointSet", &items, next, request_id), count))
}

fn envelope(name: &str, set: &str, items: &str, next: Option<String>, request_id: &str) -> String {
    let mut xml = Xml(String::with_capacity(items.len() + 512));
    xml.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    xml.0.push_str(&format!("<{name} xmlns=\"http://ec2.amazonaws.com/doc/{VERSION}/\">"));
    xml.leaf("requestId", request_id);
    xml.node(set, |xml| xml.0.push_str(items));
    if let Some(last) = next {
        xml.leaf("nextToken", URL_SAFE_NO_PAD.encode(format!("after {last}")));
    }
    xml.0.push_str(&format!("</{name}>"));
    xml.0
}

type Filters<'a> = Vec<(&'a str, Vec<&'a str>)>;

fn filters(form: &Form, is_known: impl Fn(&str) -> bool) -> Result<Filters<'_>, Refusal> {
    if form.filters.len() > FILTERS_MAX {
        let text = format!("The maximum number of filters specified on a single call is {FILTERS_MAX}");
        return Err(Refusal::new("FilterLimitExceeded", text));
    }
    form.filters
        .values()
        .map(|filter| {
            if !is_known(&filter.name) {
                let text = format!("The filter '{}' is invalid", filter.name);
                return Err(Refusal::new("InvalidParameterValue", text));
            }
            if filter.values.len() > FILTER_VALUES_MAX {
                let text =
                    format!("The maximum number of filter values specified on a single call is {FILTER_VALUES_MAX}");
                return Err(Refusal::new("FilterLimitExceeded", text));
            }
            if filter.values.values().any(|it| it.chars().count() > FILTER_VALUE_LENGTH_MAX) {
                let text = format!("Filter values can be up to {FILTER_VALUE_LENGTH_MAX} characters in length");
                return Err(Refusal::new("InvalidParameterValue", text));
            }
            Ok((&*filter.name, filter.values.values().map(String::as_str).collect()))
        })
        .collect()
}

fn page_max(form: &Form, least: usize, most: usize) -> Result<Option<usize>, Refusal> {
    let Some(text) = form.get("MaxResults") else {
        return Ok(None);
    };
    let bad = |expecting: String| {
        let text = format!("Value ( {text} ) for parameter maxResults is invalid. Expecting a value {expecting}.");
        Refusal::new("InvalidParameterValue", text)
    };
    match text.parse::<usize>() {
        Ok(it) if it < least => Err(bad(format!("greater than {least}"))),
        Ok(it) if it > most => Err(bad(format!("less than {most}"))),
        Ok(it) => Ok(Some(it)),
        Err(_) => Err(bad("that is an integer".into())),
    }
}

fn after(form: &Form) -> Result<Option<String>, Refusal> {
    let Some(token) = form.get("NextToken") else {
        return Ok(None);
    };
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|it| String::from_utf8(it).ok())
        .and_then(|it| it.strip_prefix("after ").map(str::to_owned))
        .map(Some)
        .ok_or_else(|| Refusal::new("InvalidParameterValue", "Unable to parse pagination token"))
}

fn dry_run(form: &Form) -> Result<(), Refusal> {
    match form.get("DryRun") {
        Some("true") => Err(Refusal {
            status: 412,
            ..Refusal::new("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
        }),
        _ => Ok(()),
    }
}

/// The ids of an `instance-id` filter without wildcards: they are looked up rather than searched for.
fn exact_ids<'a>(filters: &Filters<'a>) -> Option<BTreeSet<&'a str>> {
    let (_, values) = filters.iter().find(|(name, _)| *name == "instance-id")?;
    let is_exact = |it: &&str| !it.contains(['*', '?', '\\']);
    values.iter().all(is_exact).then(|| values.iter().copied().collect())
}

fn is_instance_filter(name: &str) -> bool {
    name.strip_prefix("tag:").is_some_and(|key| !key.is_empty())
        || matches!(
            name,
            "instance-id"
                | "instance-state-name"
                | "instance-state-code"
                | "tag-key"
                | "vpc-id"
                | "subnet-id"
                | "availability-zone"
                | "owner-id"
                | "private-ip-address"
                | "ip-address"
        )
}

fn instance_matches(it: &Instance, (name, values): &(&str, Vec<&str>)) -> bool {
    let any = |value: &str| values.iter().any(|pattern| wildcard(pattern, value));
    let is_gone = it.state == "terminated";
    match *name {
        "instance-id" => any(&it.id),
        "instance-state-name" => any(&it.state),
        "instance-state-code" => any(&state_code(&it.state).to_string()),
        "tag-key" => it.tags.keys().any(|key| any(key)),
        "availability-zone" => any(&it.availability_zone),
        "owner-id" => any(&it.account_id),
        "vpc-id" => !is_gone && any(&it.vpc_id),
        "subnet-id" => !is_gone && any(&it.subnet_id),
        "private-ip-address" => !is_gone && it.private_ip.is_some_and(|ip| any(&ip.to_string())),
        "ip-address" => !is_gone && it.public_ip.is_some_and(|ip| any(&ip.to_string())),
        name => name.strip_prefix("tag:").and_then(|key| it.tags.get(key)).is_some_and(|value| any(value)),
    }
}

/// `i-` and 8 or 17 hexadecimal digits.
pub(super) fn is_instance_id(id: &str) -> bool {
    id.strip_prefix("i-").is_some_and(|it| {
        matches!(it.len(), 8 | 17) && it.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// EC2's wildcards: `*` is any characters, `?` is none or one, a backslash takes their meaning away.
fn wildcard(pattern: &str, value: &str) -> bool {
    #[derive(PartialEq)]
    enum Piece {
        Any,
        Maybe,
        Char(char),
    }
    if !pattern.contains(['*', '?', '\\']) {
        return pattern == value;
    }
    let mut pieces = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::Any,
            '?' => Piece::Maybe,
            '\\' => Piece::Char(chars.next().unwrap_or('\\')),
            c => Piece::Char(c),
        });
    }
    // `reach[n]`: the pieces so far can match the first n characters; no backtracking, so no hostile pattern
    let value: Vec<char> = value.chars().collect();
    let mut reach = vec![false; value.len() + 1];
    reach[0] = true;
    for piece in &pieces {
        match piece {
            Piece::Any => {
                for n in 1..reach.len() {
                    reach[n] = reach[n] || reach[n - 1];
                }
            }
            Piece::Maybe => {
                for n in (1..reach.len()).rev() {
                    reach[n] = reach[n] || reach[n - 1];
                }
            }
            Piece::Char(c) => {
                for n in (1..reach.len()).rev() {
                    reach[n] = reach[n - 1] && value[n - 1] == *c;
                }
                reach[0] = false;
            }
        }
    }
    reach[value.len()]
}

/// How long a terminated instance is shown: EC2 says "usually less than one hour".
pub(super) const TERMINATED_SHOWN_FOR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::wildcard;

    #[test]
    fn a_star_is_any_characters_a_question_mark_none_or_one_a_backslash_quotes() {
        for (pattern, value, expected) in [
            ("web", "web", true),
            ("web", "Web", false),
            ("web*", "web-1", true),
            ("*", "", true),
            ("*1", "web-1", true),
            ("w*b*1", "web-1", true),
            ("w*x*1", "web-1", false),
            ("prod?", "prods", true),
            ("prod?", "prod", true),
            ("prod?", "production", false),
            ("?", "ab", false),
            ("\\*amazon\\?\\\\", "*amazon?\\", true),
            ("\\*amazon\\?\\\\", "xamazon?\\", false),
            ("a**************************b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(wildcard(pattern, value), expected, "{pattern} {value}");
        }
    }
}
