//! Instances and the Redis fail; clients notice as little as promised.

use std::{
    convert::Infallible,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use vx11_tests::harness::{EventStream, Follower, Route, Sandbox, TOKEN, eventually, holds, sandbox, tool};

/// Publishes numbered texts one after the other through the Ingress; failed ones are tried again with the same
/// text, as a careful publisher does.
async fn publish(sandbox: &Sandbox, principal: &str, numbers: std::ops::Range<u32>) {
    let route = sandbox.ingress("simple");
    for number in numbers {
        let key = format!("e2e-{number}");
        let body = serde_json::json!({ "data": number }).to_string();
        let headers = [("x-vx11-token", principal), ("idempotency-key", key.as_str())];
        eventually(&format!("event {number} is accepted"), Duration::from_secs(45), async || {
            let answer = route.request(Method::POST, "/operator/api/events", &headers, &body).await;
            answer.is_ok_and(|answer| answer.status == 202).then_some(())
        })
        .await;
    }
}

/// Waits until a follower has every number up to `end`, each once, in order.
async fn complete(follower: &Follower, end: u32) {
    let expected: Vec<String> = (0..end).map(|number| number.to_string()).collect();
    eventually(&format!("a follower has all {end} events"), Duration::from_secs(30), async || {
        (follower.messages().len() >= expected.len()).then_some(())
    })
    .await;
    assert_eq!(follower.messages(), expected, "every event once, in order");
    assert_eq!(follower.gaps(), 0, "no gap was told");
}

/// Longest time without an answer while an instance is lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Issues a token every 100 ms for as long as it is polled, and writes down when each was asked for and whether it
/// came. None waits for another.
async fn issue(route: Route, principal: &str, asked: &Mutex<Vec<(Instant, bool)>>) -> Infallible {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let mut requests = FuturesUnordered::new();
    loop {
        let request = async {
            let begun = Instant::now();
            let answer = route.request(Method::POST, TOKEN, &[("x-vx11-token", principal)], "").await;
            (begun, answer.is_ok_and(|answer| answer.status == 200))
        };
        requests.push(request);
        while tokio::select! { _ = ticks.tick() => false, Some(result) = requests.next() => {
            asked.lock().unwrap().push(result);
            true
        } } {}
    }
}

/// The longest run of requests that failed: from the first of them to the next that did not.
fn longest_run_of_failures(mut asked: Vec<(Instant, bool)>) -> Duration {
    asked.sort();
    let (mut longest, mut failing) = (Duration::ZERO, None);
    for (begun, answered) in asked {
        let since = *failing.get_or_insert(begun);
        if answered {
            longest = longest.max(if since == begun { Duration::ZERO } else { begun - since });
            failing = None;
        }
    }
    assert_eq!(failing, None, "the last requests failed");
    longest
}

#[test]
fn a_run_of_failures_is_as_long_as_nobody_is_answered() {
    let begun = Instant::now();
    let at = |tenths: u32, answered| (begun + Duration::from_millis(100) * tenths, answered);
    let asked =
        vec![at(3, false), at(0, true), at(1, false), at(2, true), at(4, false), at(6, true), at(7, true)];
    assert_eq!(longest_run_of_failures(asked), Duration::from_millis(300));
    assert_eq!(longest_run_of_failures(vec![at(0, true), at(1, true)]), Duration::ZERO);
}

#[tokio::test]
async fn when_an_instance_is_killed_requests_go_on_and_streams_continue() {
    sandbox("kill", async |sandbox| {
        sandbox.ready("simple", "{instances: 2, backend: {tokenTtlSeconds: 60}}").await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let token = sandbox.token("simple", &route).await;
        // Several, so that some are on the instance that dies.
        let mut followers = Vec::new();
        for _ in 0..6 {
            followers.push(Follower::start(route.clone(), token.clone()).await);
        }
        publish(sandbox, &principal, 0..20).await;
        let victim = sandbox.instances("simple").await.remove(0).name;
        let now = DeleteParams::default().grace_period(0);
        let asked = Mutex::new(Vec::new());
        let mut published = 20;
        let killed = async {
            eventually("requests are answered", Duration::from_secs(10), async || {
                (asked.lock().unwrap().len() >= 5).then_some(())
            })
            .await;
            sandbox.api::<Pod>().delete(&victim, &now).await.unwrap();
            // The kubelet ends the process a moment after the API forgot the pod.
            eventually(
                "a stream comes back from the instance that died",
                Duration::from_secs(60),
                async || {
                    publish(sandbox, &principal, published..published + 2).await;
                    published += 2;
                    followers.iter().any(|follower| follower.connections() > 1).then_some(())
                },
            )
            .await;
            publish(sandbox, &principal, published..published + 20).await;
        };
        tokio::select! {
            never = issue(route.clone(), &principal, &asked) => match never {},
            () = killed => {}
        }
        let asked = asked.into_inner().unwrap();
        let (count, longest) = (asked.len(), longest_run_of_failures(asked));
        println!("{count} tokens were asked for, at most {longest:?} without an answer");
        assert!(count > 20 && longest < LONGEST_PAUSE, "{longest:?} without an answer");
        for follower in &followers {
            complete(follower, published + 20).await;
        }
        sandbox.until("simple", "Ready", "True").await;
        assert_eq!(route.post(TOKEN, &[("x-vx11-token", &principal)], "").await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn a_rollout_loses_no_event_of_any_stream() {
    sandbox("rollout", async |sandbox| {
        sandbox.ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 3}}}").await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let token = sandbox.token("simple", &route).await;
        let mut followers = Vec::new();
        for _ in 0..6 {
            followers.push(Follower::start(route.clone(), token.clone()).await);
        }
        let before = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect::<Vec<_>>();
        sandbox
            .patch(
                "simple",
                serde_json::json!({ "spec": { "backend": { "pod": { "labels": { "roll": "1" } } } } }),
            )
            .await;
        let mut published = 0;
        eventually("every instance is new", Duration::from_secs(90), async || {
            publish(sandbox, &principal, published..published + 5).await;
            published += 5;
            let now = sandbox.pods("simple", "backend").await;
            let old = now.iter().any(|pod| before.contains(pod.metadata.name.as_ref().unwrap()));
            (!old && now.len() == 2).then_some(())
        })
        .await;
        for follower in &followers {
            complete(follower, published).await;
            assert!(follower.connections() > 1, "its instance was replaced");
        }
    })
    .await;
}

#[tokio::test]
async fn with_a_redis_that_is_silent_for_30_seconds_no_stream_closes_and_tokens_go_on() {
    sandbox("silent", async |sandbox| {
        // Every command waits.
        without_redis(sandbox, async || redis_cli(sandbox, "CLIENT PAUSE 30000 ALL")).await;
    })
    .await;
}

#[tokio::test]
async fn with_a_redis_that_is_gone_for_30_seconds_no_stream_closes_and_tokens_go_on() {
    sandbox("gone", async |sandbox| {
        without_redis(sandbox, async || {
            let over = Instant::now() + Duration::from_secs(30);
            // The kubelet starts it again and again; it ends each time.
            while Instant::now() < over {
                redis_cli(sandbox, "SHUTDOWN NOSAVE");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    })
    .await;
}

/// Runs a command in the Redis, if there is one at this moment.
fn redis_cli(sandbox: &Sandbox, command: &str) {
    let command = format!("REDISCLI_AUTH=$(cat /etc/vx11/redis/password) redis-cli {command}");
    let _ =
        tool("kubectl", &["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", &command]);
}

/// What has to hold while a Redis is taken away for a while, and after.
async fn without_redis(sandbox: &Sandbox, take_away: impl AsyncFnOnce()) {
    sandbox.ready("simple", "{instances: 2}").await;
    let instances = sandbox.instances("simple").await;
    let principal = sandbox.principal("simple").await;
    let token = sandbox.token("simple", &instances[0].public()).await;
    let mut streams = Vec::new();
    for instance in &instances {
        let mut stream =
            EventStream::open(&instance.public(), &format!("?token={token}"), &[]).await.unwrap();
        stream.until("snapshot", Duration::from_secs(5)).await;
        streams.push(stream);
    }
    let mut begun = Vec::new();
    let watched = async {
        sandbox.until("simple", "Degraded", "True").await;
        assert_eq!(sandbox.condition("simple", "RedisReady").await.unwrap().status, "False");
        // Issued on one, accepted on the other, while there is no Redis.
        for (here, there) in [(0, 1), (1, 0)] {
            let answer = instances[here].public().post(TOKEN, &[("x-vx11-token", &principal)], "").await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let token = answer.json()["sse_token"].as_str().unwrap().to_owned();
            let mut stream =
                EventStream::open(&instances[there].public(), &format!("?token={token}"), &[]).await.unwrap();
            stream.until("snapshot", Duration::from_secs(5)).await;
            begun.push(stream);
        }
        // It was so all the while, not after.
        assert_eq!(sandbox.condition("simple", "RedisReady").await.unwrap().status, "False");
    };
    futures::future::join(take_away(), watched).await;
    sandbox.until("simple", "Ready", "True").await;
    sandbox.until("simple", "Degraded", "False").await;
    // Those of before are still open, and those of the outage too.
    streams.append(&mut begun);
    // Heartbeats went on.
    for stream in &mut streams {
        stream.until("heartbeat", Duration::from_secs(20)).await;
    }
    eventually("an event is accepted again", Duration::from_secs(20), async || {
        sandbox.publish(&principal, &instances[0].public(), "after", "after").await.ok()
    })
    .await;
    for stream in &mut streams {
        assert_eq!(stream.until("message", Duration::from_secs(5)).await.data, "\"after\"");
    }
}

#[tokio::test]
async fn a_spec_that_turns_invalid_leaves_the_running_cluster_untouched_and_says_so() {
    sandbox("invalid", async |sandbox| {
        sandbox.ready("simple", "{instances: 1}").await;
        let pods: Api<Pod> = sandbox.api();
        let uids = async || {
            let mut uids: Vec<_> = pods.list(&kube::api::ListParams::default()).await.unwrap().items.into_iter().map(|pod| pod.metadata.uid).collect();
            uids.sort();
            uids
        };
        let before = uids().await;
        let spec = serde_json::json!({ "spec": { "instances": 2, "redis": { "auth": { "secretName": "not-there" } } } });
        sandbox.patch("simple", spec).await;
        let condition = sandbox.until("simple", "Degraded", "True").await;
        assert_eq!(condition.reason, "SecretMissing");
        assert!(condition.message.contains("not-there"), "{}", condition.message);
        holds("the running pods stay as they were", Duration::from_secs(4), async || uids().await == before).await;
        assert_eq!(sandbox.ingress("simple").get("/health", &[]).await.status, 200);
        eventually("an event tells it", Duration::from_secs(10), async || {
            sandbox.events("simple").await.iter().any(|event| event.contains("not-there")).then_some(())
        })
        .await;
    })
    .await;
}
