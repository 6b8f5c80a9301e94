//! DescribeInstances and DescribeInstanceConnectEndpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use lab::standin::{Config, Endpoint, Instance, Rates};

use super::client::{Answer, ID, instance, world, world_with};

/// Names, each with its values.
type Filters<'a> = &'a [(&'a str, &'a [&'a str])];
type Parameters<'a> = &'a [(&'a str, &'a str)];

fn id(n: usize) -> String {
    format!("i-{n:017x}")
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Asks with filters, each a name and its values.
async fn filtered(world: &super::client::World, filters: Filters<'_>) -> Answer {
    let mut owned = Vec::new();
    for (n, (name, values)) in filters.iter().enumerate() {
        owned.push((format!("Filter.{}.Name", n + 1), (*name).to_owned()));
        for (m, value) in values.iter().enumerate() {
            owned.push((format!("Filter.{}.Value.{}", n + 1, m + 1), (*value).to_owned()));
        }
    }
    let parameters: Vec<(&str, &str)> = owned.iter().map(|(a, b)| (&**a, &**b)).collect();
    world.look_up(&parameters).await
}

#[tokio::test]
async fn an_instance_is_described_as_ec2_describes_it() {
    let world = world().await;
    world.stand_in.put_instance(Instance {
        public_ip: Some(IpAddr::from([203, 0, 113, 5])),
        ipv6: Some("2001:db8::5".parse().unwrap()),
        tags: tags(&[("Name", "a<b&c")]),
        ..instance(ID)
    });
    let answer = world.look_up(&[("InstanceId.1", ID)]).await;
    assert_eq!(answer.status, 200);
    for (element, text) in [
        ("ownerId", "123456789012"),
        ("instanceId", ID),
        ("code", "16"),
        ("name", "running"),
        ("availabilityZone", "us-west-2a"),
        ("vpcId", "vpc-0123456789abcdef0"),
        ("subnetId", "subnet-0123456789abcdef0"),
        ("privateIpAddress", "10.0.0.5"),
        ("ipAddress", "203.0.113.5"),
        ("ipv6Address", "2001:db8::5"),
        ("key", "Name"),
        ("value", "a&lt;b&amp;c"),
    ] {
        assert_eq!(answer.text(element), Some(text), "{}", answer.body);
    }
    assert!(answer.body.contains("<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">"));
}

#[tokio::test]
async fn one_bad_id_fails_the_whole_call_by_id_but_not_by_filter() {
    let world = world().await;
    for (parameters, expected) in [
        (&[("InstanceId.1", ID), ("InstanceId.2", "i-0123456789abcdef1")][..], "InvalidInstanceID.NotFound"),
        (&[("InstanceId.1", ID), ("InstanceId.2", "ma1")], "InvalidInstanceID.Malformed"),
        (&[("InstanceId.1", "i-123")], "InvalidInstanceID.Malformed"),
        (&[("InstanceId.1", ID), ("MaxResults", "5")], "InvalidParameterCombination"),
        (&[("MaxResults", "4")], "InvalidParameterValue"),
        (&[("MaxResults", "1001")], "InvalidParameterValue"),
        (&[("MaxResults", "five")], "InvalidParameterValue"),
        (&[("NextToken", "nonsense")], "InvalidParameterValue"),
        (&[("Filter.1.Name", "colour"), ("Filter.1.Value.1", "red")], "InvalidParameterValue"),
        (&[("DryRun", "true")], "DryRunOperation"),
    ] {
        let answer = world.look_up(parameters).await;
        assert_eq!(answer.text("Code"), Some(expected), "{parameters:?}");
        assert!(answer.body.contains("<Response><Errors><Error><Code>"), "{}", answer.body);
        assert!(answer.text("RequestID").is_some_and(|it| it.len() == 36));
    }
    let answer = world.look_up(&[("InstanceId.1", "i-0123456789abcdef1")]).await;
    assert_eq!(
        (answer.status, answer.text("Message")),
        (400, Some("The instance ID 'i-0123456789abcdef1' does not exist"))
    );
    assert_eq!(world.ec2(&[("Action", "RunInstances")]).await.text("Code"), Some("InvalidAction"));

    let answer = filtered(&world, &[("instance-id", &[ID, "i-0123456789abcdef1", "ma1"])]).await;
    assert_eq!((answer.status, answer.texts("instanceId")), (200, vec![ID]));
}

#[tokio::test]
async fn filters_and_values_combine_as_in_ec2() {
    let world = world().await;
    world.stand_in.remove_instance(ID);
    for (n, (name, env, state, vpc)) in [
        ("web-1", "prod", "running", "vpc-a"),
        ("web-2", "dev", "stopped", "vpc-a"),
        ("db-1", "prod", "running", "vpc-b"),
        ("Web-3", "", "running", "vpc-b"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tags = tags(&[("Name", name)]);
        if !env.is_empty() {
            tags.insert("env".into(), env.into());
        }
        world.stand_in.put_instance(Instance {
            state: state.into(),
            vpc_id: vpc.into(),
            subnet_id: format!("subnet-{n}"),
            availability_zone: if n == 0 { "us-west-2a".into() } else { "us-west-2b".into() },
            tags,
            ..instance(&id(n))
        });
    }
    world.stand_in.put_instance(Instance { region: "eu-central-1".into(), ..instance(&id(9)) });
    let rows: &[(Filters<'_>, &[usize])] = &[
        (&[], &[0, 1, 2, 3]),
        (&[("tag:Name", &["web-1"])], &[0]),
        (&[("tag:Name", &["web-*"])], &[0, 1]),
        (&[("tag:Name", &["?eb-1"])], &[0]),
        (&[("tag:Name", &["web-1", "db-1"])], &[0, 2]),
        (&[("tag:Name", &["*-1"]), ("tag:env", &["prod"])], &[0, 2]),
        (&[("tag:env", &["*"])], &[0, 1, 2]),
        (&[("tag-key", &["env"])], &[0, 1, 2]),
        (&[("tag-key", &["e*"]), ("instance-state-name", &["running"])], &[0, 2]),
        (&[("instance-state-name", &["running", "pending"])], &[0, 2, 3]),
        (&[("vpc-id", &["vpc-b"])], &[2, 3]),
        (&[("subnet-id", &["subnet-1"])], &[1]),
        (&[("availability-zone", &["us-west-2b"])], &[1, 2, 3]),
        (&[("tag:name", &["web-1"])], &[]),
        (&[("instance-id", &[])], &[]),
    ];
    for (filters, expected) in rows {
        let answer = filtered(&world, filters).await;
        let expected: Vec<String> = expected.iter().map(|n| id(*n)).collect();
        assert_eq!(answer.texts("instanceId"), expected, "{filters:?}");
    }
    let elsewhere = world.query_in("eu-central-1", "ec2", &[("Action", "DescribeInstances")]);
    assert_eq!(world.send(elsewhere).await.texts("instanceId"), [id(9)]);
}

#[tokio::test]
async fn two_hundred_values_go_into_one_filter_and_not_one_more() {
    let world = world().await;
    let ids: Vec<String> = (0..201).map(id).collect();
    for it in &ids {
        world.stand_in.put_instance(instance(it));
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let answer = filtered(&world, &[("instance-id", &ids[..200])]).await;
    assert_eq!(answer.texts("instanceId").len(), 200);
    let entry = world.stand_in.journal().pop().unwrap();
    assert_eq!((entry.instance_ids.len(), entry.answered), (200, Some(200)));
    let answer = filtered(&world, &[("instance-id", &ids)]).await;
    assert_eq!(answer.text("Code"), Some("FilterLimitExceeded"));
}

async fn pages(world: &super::client::World, parameters: Parameters<'_>) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let mut all = parameters.to_vec();
        if let Some(token) = &token {
            all.push(("NextToken", token));
        }
        let answer = world.look_up(&all).await;
        pages.push(answer.texts("instanceId").into_iter().map(str::to_owned).collect());
        token = answer.text("nextToken").map(str::to_owned);
        if token.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn pages_hold_every_instance_once() {
    let world = world().await;
    world.stand_in.remove_instance(ID);
    for n in 0..12 {
        let tags = tags(&[("even", if n % 2 == 0 { "yes" } else { "no" })]);
        world.stand_in.put_instance(Instance { tags, ..instance(&id(n)) });
    }
    let sizes = |pages: &[Vec<String>]| pages.iter().map(Vec::len).collect::<Vec<_>>();
    let all = pages(&world, &[("MaxResults", "5")]).await;
    assert_eq!(sizes(&all), [5, 5, 2]);
    assert_eq!(all.concat(), (0..12).map(id).collect::<Vec<_>>());
    let even = [("Filter.1.Name", "tag:even"), ("Filter.1.Value.1", "yes"), ("MaxResults", "5")];
    assert_eq!(sizes(&pages(&world, &even).await), [5, 1]);
    assert_eq!(sizes(&pages(&world, &[("MaxResults", "12")]).await), [12], "a full last page has no token");
}

#[tokio::test]
async fn a_page_may_be_empty_and_yet_not_the_last() {
    let world = world_with(Config { sparse_pages: true, ..Config::default() }).await;
    world.stand_in.remove_instance(ID);
    for n in 0..12 {
        let tags = tags(&[("last", if n == 11 { "yes" } else { "no" })]);
        world.stand_in.put_instance(Instance { tags, ..instance(&id(n)) });
    }
    let last = [("Filter.1.Name", "tag:last"), ("Filter.1.Value.1", "yes"), ("MaxResults", "5")];
    assert_eq!(pages(&world, &last).await, [vec![], vec![], vec![id(11)]]);
}

#[tokio::test]
async fn a_thousand_instances_are_the_most_of_one_answer() {
    let world = world().await;
    for n in 0..2500 {
        world.stand_in.put_instance(instance(&id(n)));
    }
    let start = std::time::Instant::now();
    let all = pages(&world, &[]).await;
    eprintln!("2501 instances in {:?}", start.elapsed());
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 501]);
}

#[tokio::test]
async fn a_terminated_instance_is_shown_for_an_hour_without_its_network() {
    let world = world().await;
    world.stand_in.put_instance(Instance { state: "terminated".into(), ..instance(ID) });
    let answer = world.look_up(&[("InstanceId.1", ID)]).await;
    assert_eq!((answer.text("name"), answer.text("code")), (Some("terminated"), Some("48")));
    assert_eq!((answer.text("vpcId"), answer.text("privateIpAddress")), (None, None));
    world.stand_in.advance(Duration::from_secs(3600));
    assert_eq!(world.look_up(&[("InstanceId.1", ID)]).await.text("Code"), Some("InvalidInstanceID.NotFound"));
}

#[tokio::test]
async fn endpoints_are_found_by_state_vpc_and_subnet() {
    let world = world().await;
    for (n, state, vpc) in
        [(1, "create-complete", "vpc-a"), (2, "update-failed", "vpc-a"), (3, "delete-complete", "vpc-b")]
    {
        world.stand_in.put_endpoint(Endpoint {
            id: format!("eice-{n}"),
            state: state.into(),
            vpc_id: vpc.into(),
            subnet_id: format!("subnet-{n}"),
            dns_name: format!("eice-{n}.example"),
            ..Endpoint::default()
        });
    }
    world.stand_in.put_endpoint(Endpoint { id: "eice-4".into(), region: "eu-central-1".into(), ..Endpoint::default() });
    let ask = async |parameters: Parameters<'_>| {
        let mut all = vec![("Action", "DescribeInstanceConnectEndpoints")];
        all.extend_from_slice(parameters);
        world.ec2(&all).await
    };
    let rows: &[(Parameters<'_>, &[&str])] = &[
        (&[], &["eice-1", "eice-2", "eice-3"]),
        (&[("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", "vpc-a")], &["eice-1", "eice-2"]),
        (
            &[
                ("Filter.1.Name", "state"),
                ("Filter.1.Value.1", "create-complete"),
                ("Filter.1.Value.2", "update-failed"),
            ],
            &["eice-1", "eice-2"],
        ),
        (&[("Filter.1.Name", "subnet-id"), ("Filter.1.Value.1", "subnet-3")], &["eice-3"]),
        (&[("Filter.1.Name", "instance-connect-endpoint-id"), ("Filter.1.Value.1", "eice-2")], &["eice-2"]),
        (&[("InstanceConnectEndpointId.1", "eice-2")], &["eice-2"]),
    ];
    for (parameters, expected) in rows {
        let answer = ask(parameters).await;
        assert_eq!(answer.texts("instanceConnectEndpointId"), *expected, "{parameters:?}: {}", answer.body);
    }
    let first = ask(&[("MaxResults", "2")]).await;
    assert_eq!(first.texts("instanceConnectEndpointId"), ["eice-1", "eice-2"]);
    let rest = ask(&[("MaxResults", "2"), ("NextToken", first.text("nextToken").unwrap())]).await;
    assert_eq!((rest.texts("dnsName"), rest.text("nextToken")), (vec!["eice-3.example"], None));
    let answer = ask(&[("InstanceConnectEndpointId.1", "eice-4")]).await;
    assert_eq!(answer.text("Code"), Some("InvalidInstanceConnectEndpointId.NotFound"));
}

#[tokio::test]
async fn rates_throttle_the_wide_look_up_before_the_narrow_one() {
    let world = world_with(Config { rates: Some(Rates::default()), ..Config::default() }).await;
    let count = async |parameters: Parameters<'_>| {
        let mut good = 0;
        loop {
            let answer = world.look_up(parameters).await;
            if answer.status != 200 {
                assert_eq!((answer.status, answer.text("Code")), (503, Some("RequestLimitExceeded")));
                return good;
            }
            good += 1;
        }
    };
    let wide = count(&[]).await;
    let narrow = count(&[("InstanceId.1", ID)]).await;
    // some tokens come back while we ask
    assert!((50..100).contains(&wide) && (100..200).contains(&narrow), "{wide} {narrow}");
    world.stand_in.advance(Duration::from_secs(60));
    assert_eq!(world.look_up(&[]).await.status, 200);
}
