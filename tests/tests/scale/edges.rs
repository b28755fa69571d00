//! How many: the count follows clients and issuances across each edge of the formula, and no further.

use std::time::Duration;

use vx11_tests::harness::{Sandbox, TOKEN, eventually, holds, sandbox};

use super::{PATIENCE, follow, replicas, small, streams, until_replicas, until_serving};

#[tokio::test(flavor = "multi_thread")]
async fn the_count_follows_the_clients_across_each_edge_of_the_formula() {
    sandbox("edges", async |sandbox| {
        // The guide's own numbers: 500 clients an instance, at 95 % from two on.
        sandbox.ready("simple", &small(1, "rebalance: false, maxInstances: 6")).await;
        let mut followers = Vec::new();
        for (clients, instances) in [(500, 1), (501, 2), (950, 2), (951, 3), (1425, 3), (1426, 4)] {
            followers.extend(follow(sandbox, clients - followers.len()).await);
            let told =
                eventually(&format!("{clients} clients are seen and decided for"), PATIENCE, async || {
                    let status = sandbox.cluster("simple").await.status?;
                    let scaling = status.scaling?;
                    (scaling.message.replace(',', "").starts_with(&format!("{clients} clients"))
                        && scaling.desired == instances)
                        .then_some(scaling.message)
                })
                .await;
            assert!(told.contains(&format!("need {instances} instance")), "{told}");
            until_replicas(sandbox, instances).await;
        }
        // Each change is an event of its own, with its own numbers.
        eventually("every scale-out is told", PATIENCE, async || {
            let events = sandbox.events("simple").await;
            let told = |to: i32| events.iter().any(|event| event.ends_with(&format!("scaling out to {to}")));
            (told(2) && told(3) && told(4)).then_some(())
        })
        .await;
        let status = sandbox.cluster("simple").await.status.unwrap();
        assert!(status.recommendation.unwrap().starts_with("Horizontal: 4 instances"));
        assert_eq!(status.estimated_cost_per_hour.as_deref(), Some("0.20"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_follows_the_issuances_across_each_edge_of_the_formula() {
    sandbox("issuances", async |sandbox| {
        // 1 instance issues 20 a second, 2 issue 38, 3 issue 57. A burst that lasts less than the window is none.
        let spec = "issuancesPerSecondPerInstance: 20, maxInstances: 3, scaleOutStabilizationSeconds: 10";
        sandbox.ready("simple", &small(1, spec)).await;
        for (rate, instances) in [(17, 1), (24, 2), (33, 2), (43, 3)] {
            let reached = async {
                seen_issuing(sandbox, rate).await;
                until_replicas(sandbox, instances).await;
                let what = format!("{rate} tokens a second need {instances}");
                holds(&what, Duration::from_secs(15), async || replicas(sandbox).await == instances).await;
            };
            tokio::select! {
                never = issue(sandbox, rate) => match never {},
                () = reached => {}
            }
        }
        let limited = async { sandbox.until("simple", "ScalingLimited", "True").await };
        let condition = tokio::select! {
            never = issue(sandbox, 75) => match never {},
            condition = limited => condition,
        };
        let message = condition.message;
        assert!(message.contains("raise spec.autoscaling.maxInstances to"), "{message}");
        assert_eq!(replicas(sandbox).await, 3, "maxInstances is the end");
    })
    .await;
}

/// Issues tokens at this rate for as long as it is polled; a slow answer keeps no other waiting.
async fn issue(sandbox: &Sandbox, per_second: u32) -> std::convert::Infallible {
    let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut requests = tokio::task::JoinSet::new();
    loop {
        ticks.tick().await;
        while requests.try_join_next().is_some() {}
        let (route, principal) = (route.clone(), principal.clone());
        requests.spawn(async move { route.post(TOKEN, &[("x-vx11-token", &principal)], "").await.status });
    }
}

/// Waits until the status tells this rate, give or take a tenth.
async fn seen_issuing(sandbox: &Sandbox, rate: u32) {
    eventually(&format!("{rate} tokens a second are seen"), PATIENCE, async || {
        let seen = sandbox.cluster("simple").await.status?.load?.issuances_per_second;
        let (least, most) = (i64::from(rate * 9 / 10), i64::from(rate * 11 / 10));
        (least..=most).contains(&seen).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_instances_get_their_share_of_open_streams() {
    sandbox("level", async |sandbox| {
        sandbox.ready("simple", &small(1, "clientsPerInstance: 200, maxInstances: 3")).await;
        let followers = follow(sandbox, 250).await;
        until_serving(sandbox, 2).await;
        let instances = sandbox.instances("simple").await;
        eventually("the fullest has at most 20 % of the mean more than the emptiest", PATIENCE, async || {
            let mut loads = Vec::new();
            for instance in &instances {
                loads.push(streams(instance).await);
            }
            let (most, least, sum) = (loads.iter().max()?, loads.iter().min()?, loads.iter().sum::<u64>());
            let mean = sum / u64::try_from(loads.len()).ok()?;
            (sum >= 240 && (most - least) * 100 < mean * 20).then_some(())
        })
        .await;
        drop(followers);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_scale_is_refused_with_its_remedy() {
    sandbox("refused", async |sandbox| {
        let refused = [
            ("{autoscaling: {minInstances: 5, maxInstances: 2}}", "lower minInstances or raise maxInstances"),
            ("{autoscaling: {minInstances: 0}}", "spec.autoscaling.minInstances must be at least 1"),
            ("{autoscaling: {maxInstances: 0}}", "spec.autoscaling.maxInstances must be at least 1"),
            ("{autoscaling: {clientsPerInstance: 0}}", "the scaling guide takes 500"),
            ("{autoscaling: {issuancesPerSecondPerInstance: 0}}", "the scaling guide takes 1000"),
            ("{autoscaling: {loadBalancerEfficiencyPercent: 0}}", "must be 1 to 100: the scaling guide takes 95"),
            ("{autoscaling: {targetUtilizationPercent: 101}}", "must be 1 to 100: 100 fills the instances"),
            ("{autoscaling: {}, redis: {type: None}}", "set spec.redis.type to Standalone, or remove spec.autoscaling"),
            ("{autoscaling: {clientsPerInstance: 1001}}", "lower the first or raise the second"),
        ];
        for (spec, remedy) in refused {
            let error = sandbox.try_apply("refused", spec).await.expect_err(spec).to_string();
            assert!(error.contains(remedy), "{spec}: {error}");
        }
        // What passes beside each of them.
        let all = "{paused: true, autoscaling: {minInstances: 2, maxInstances: 2, clientsPerInstance: 1000, \
                   issuancesPerSecondPerInstance: 1, loadBalancerEfficiencyPercent: 100, targetUtilizationPercent: 1, \
                   expectedClients: 1000000000}}";
        sandbox.apply("accepted", all).await;
        let limited = sandbox.until("accepted", "ScalingLimited", "True").await;
        assert!(limited.message.contains("raise spec.autoscaling.maxInstances to"), "{}", limited.message);
    })
    .await;
}
