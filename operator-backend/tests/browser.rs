//! What pages get in a real Chromium: through the browser's own `EventSource`, and through the client in
//! examples/browser.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;
#[path = "browser/site.rs"]
mod site;

use std::time::Duration;

use common::{Backend, Browser, PRINCIPAL_TOKEN, Proxy, RedisServer, Tab, eventually, free_port};
use rstest::rstest;
use serde_json::{Value, json};
use site::Site;

const STREAM: &str = "/operator/api/events/stream";
const PUBLISH: &str = "/operator/api/events";
const AUTH: (&str, &str) = ("x-vx11-token", PRINCIPAL_TOKEN);
const SOON: Duration = Duration::from_secs(30);
/// Any page may use it, and a browser that was cut off comes back at once.
const FLAGS: [&str; 4] = ["--allowed-origins", "*", "--stream-retry", "100"];

fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&FLAGS, more].concat()
}

async fn publish(backend: &Backend, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        let answer = backend.post(PUBLISH, &[AUTH], json!({ "data": number }).to_string()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

/// An `EventSource` in this page, as the browser makes it; whether it opened.
async fn plain(tab: &Tab<'_>, port: u16, token: &str) -> bool {
    tab.run(&format!("return plain('http://127.0.0.1:{port}{STREAM}?token={token}')")).await == true
}

/// A page with the client of examples/browser, which fetches its tokens from the site.
async fn client<'a>(browser: &'a Browser, site: &Site, port: u16, options: &str) -> Tab<'a> {
    let tab = browser.open(&site.url("/page")).await;
    tab.run(&format!("client({{ base: 'http://127.0.0.1:{port}', {options} }})")).await;
    tab
}

/// The data of everything that came under this name, in its order.
async fn seen(tab: &Tab<'_>, name: &str) -> Vec<Value> {
    let script = format!("return seen.filter(([name]) => name === '{name}').map(([, data]) => data)");
    tab.run(&script).await.as_array().unwrap().clone()
}

async fn has(tab: &Tab<'_>, name: &str) {
    eventually(&format!("the page sees {name}"), SOON, async || !seen(tab, name).await.is_empty()).await;
}

/// Waits until the page has seen these published events, in this order, each once, and no gap.
async fn has_exactly(tab: &Tab<'_>, numbers: impl IntoIterator<Item = u32>) {
    let wanted: Vec<Value> = numbers.into_iter().map(Value::from).collect();
    let mut came = Vec::new();
    eventually(&format!("the page sees {} events", wanted.len()), SOON, async || {
        came = seen(tab, "message").await;
        came.len() >= wanted.len()
    })
    .await;
    assert_eq!(came, wanted);
    assert_eq!(seen(tab, "gap").await, Vec::<Value>::new());
}

async fn is_in_state(tab: &Tab<'_>, state: &str) {
    eventually(&format!("the client is {state}"), SOON, async || {
        tab.run("return stream.state").await == state
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_event_source_outlives_its_token_and_20_restarts_of_its_instance_without_loss_or_doubles() {
    let redis = RedisServer::start();
    let flags = flags(&["--token-ttl", "1", "--drain", "0"]);
    let start = || Backend::with_redis(&redis, &flags);
    let mut instances = [start(), start()];
    let line = Proxy::to(instances[0].port()).await;
    let (site, browser) = (Site::start().await, Browser::start().await);
    let tab = browser.open(&site.url("/page")).await;
    let mut token = String::new();
    eventually("the page uses its token in time", SOON, async || {
        token = instances[0].token().await;
        plain(&tab, line.port(), &token).await
    })
    .await;
    has(&tab, "snapshot").await;
    eventually("the token expires", SOON, async || instances[0].redeem(&token).await == 403).await;
    let mut published = 0;
    for round in 0..20 {
        let [leaving, staying] = [round % 2, 1 - round % 2];
        publish(&instances[leaving], published + 1..=published + 2).await;
        line.switch(instances[staying].port());
        // Each of the three ends, for both instances.
        match round / 2 % 3 {
            0 => assert_eq!(instances[leaving].admin().post("/drain", &[], "").await.status, 202),
            1 => {
                instances[leaving].signal("TERM");
                publish(&instances[staying], [published + 3]).await;
                assert_eq!(instances[leaving].ended(SOON).code(), Some(0));
                published += 1;
            }
            _ => instances[leaving].kill(),
        }
        publish(&instances[staying], published + 3..=published + 5).await;
        published += 5;
        has_exactly(&tab, 1..=published).await;
        if round / 2 % 3 == 0 {
            assert_eq!(instances[leaving].admin().request("DELETE", "/drain", &[], "").await.status, 200);
        } else {
            instances[leaving] = start();
        }
        for instance in &instances {
            instance.keep_secret(&token);
        }
    }
    assert_eq!(instances[0].redeem(&token).await, 403);
}

#[derive(Clone, Copy)]
enum Refused {
    Full,
    Draining,
}

#[rstest]
#[case::instance_full(Refused::Full, "instance_full")]
#[case::draining(Refused::Draining, "draining")]
#[tokio::test(flavor = "multi_thread")]
async fn a_softly_refused_browser_comes_back_by_itself(#[case] refused: Refused, #[case] reason: &str) {
    let backend = Backend::alone(&flags(&["--max-clients", "1"]));
    let (site, browser) = (Site::start().await, Browser::start().await);
    let mut occupant = None;
    match refused {
        Refused::Full => occupant = Some(backend.stream(STREAM, &[AUTH]).await),
        Refused::Draining => assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202),
    }
    let tab = browser.open(&site.url("/page")).await;
    assert!(plain(&tab, backend.port(), &backend.token().await).await, "what is no 200 ends an EventSource");
    has(&tab, "overloaded").await;
    assert_eq!(seen(&tab, "overloaded").await[0]["reason"], reason);
    assert_eq!(seen(&tab, "snapshot").await, Vec::<Value>::new());
    match refused {
        Refused::Full => drop(occupant.take()),
        Refused::Draining => {
            assert_eq!(backend.admin().request("DELETE", "/drain", &[], "").await.status, 200);
        }
    }
    has(&tab, "snapshot").await;
    publish(&backend, [1]).await;
    has_exactly(&tab, [1]).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_shown_to_the_page_before_anything_newer(#[values(false, true)] through_client: bool) {
    let backend = Backend::alone(&flags(&["--event-history", "5"]));
    let line = Proxy::to(backend.port()).await;
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let tab = if through_client {
        client(&browser, &site, line.port(), "").await
    } else {
        let tab = browser.open(&site.url("/page")).await;
        assert!(plain(&tab, line.port(), &backend.token().await).await);
        tab
    };
    has(&tab, "snapshot").await;
    publish(&backend, 1..=3).await;
    has_exactly(&tab, 1..=3).await;
    line.switch(free_port());
    line.cut();
    publish(&backend, 4..=20).await;
    line.switch(backend.port());
    eventually("the page sees the latest event", SOON, async || {
        seen(&tab, "message").await.last() == Some(&json!(20))
    })
    .await;
    let told = tab.run(
        "return seen.filter(([name]) => ['message', 'gap'].includes(name)).map(([, data]) => data.reason ?? data)",
    );
    assert_eq!(told.await, json!([1, 2, 3, "trimmed", 16, 17, 18, 19, 20]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_origin_streams_and_another_does_not() {
    let (allowed, other, browser) = (Site::start().await, Site::start().await, Browser::start().await);
    let backend = Backend::alone(&["--allowed-origins", &allowed.url("")]);
    let token = backend.token().await;
    let tab = browser.open(&allowed.url("/page")).await;
    assert!(plain(&tab, backend.port(), &token).await);
    has(&tab, "snapshot").await;
    let issue = format!(
        "return fetch('http://127.0.0.1:{}/operator/api/events/sse-token', \
         {{ method: 'POST', headers: {{ 'X-VX11-Token': '{PRINCIPAL_TOKEN}' }} }}).then((answer) => answer.status, () => 0)",
        backend.port()
    );
    assert_eq!(tab.run(&issue).await, 200);

    let denied = browser.open(&other.url("/page")).await;
    assert!(!plain(&denied, backend.port(), &token).await);
    assert_eq!(denied.run("return source.readyState").await, 2, "closed for good");
    assert_eq!(denied.run("return seen").await, json!([]));
    assert_eq!(denied.run(&issue).await, 0);
    publish(&backend, [1]).await;
    has_exactly(&tab, [1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_fetches_a_token_when_its_cursor_has_expired_and_only_then() {
    let backend = Backend::alone(&flags(&["--token-ttl", "1", "--resume-window", "4"]));
    let line = Proxy::to(backend.port()).await;
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let tab = client(&browser, &site, line.port(), "").await;
    has(&tab, "snapshot").await;
    let first = site.tokens()[0].clone();
    eventually("the token expires", SOON, async || backend.redeem(&first).await == 403).await;
    publish(&backend, [1]).await;
    has_exactly(&tab, [1]).await;
    line.cut();
    publish(&backend, [2]).await;
    has_exactly(&tab, 1..=2).await;
    assert_eq!(site.tokens().len(), 1, "the cursor was enough");

    let cursor = tab.run("return stream.cursor").await;
    line.switch(free_port());
    line.cut();
    publish(&backend, [3]).await;
    let resume = format!("{STREAM}?lastEventId={}", cursor.as_str().unwrap());
    eventually("the cursor expires", SOON, async || backend.stream(&resume, &[]).await.status != 200).await;
    line.switch(backend.port());
    has_exactly(&tab, 1..=3).await;
    let tokens = site.tokens();
    assert_eq!(tokens.len(), 2);
    for token in tokens {
        backend.keep_secret(&token);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tabs_share_one_stream_and_another_takes_over_without_loss_or_doubles() {
    let backend = Backend::alone(&flags(&[]));
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let mut tabs = Vec::new();
    for _ in 0..3 {
        let tab = client(&browser, &site, backend.port(), "").await;
        is_in_state(&tab, "open").await;
        tabs.push(tab);
    }
    let [first, second, third] = <[Tab; 3]>::try_from(tabs).ok().unwrap();
    let streams = async || backend.metric("vx11_sse_streams_open").await;
    assert!((streams().await - 1.0).abs() < 0.1, "one stream for all");
    publish(&backend, 1..=5).await;
    for tab in [&first, &second, &third] {
        has_exactly(tab, 1..=5).await;
    }
    // A tab is closed while events come, then a client is.
    tokio::join!(publish(&backend, 6..=300), first.close());
    for tab in [&second, &third] {
        has_exactly(tab, 1..=300).await;
    }
    assert_eq!(second.run("return stream.leads").await, true);
    tokio::join!(publish(&backend, 301..=600), second.run("stream.close()"));
    has_exactly(&third, 1..=600).await;
    assert_eq!(third.run("return stream.leads").await, true);
    assert_eq!(second.run("return stream.state").await, "closed");
    eventually("one stream is left", SOON, async || streams().await < 1.5).await;
    assert_eq!(site.tokens().len(), 3, "one for each tab that was connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_leaders_pass_on_comes_once_and_what_neither_does_is_a_gap() {
    let backend = Backend::alone(&flags(&[]));
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let leader = client(&browser, &site, backend.port(), "").await;
    is_in_state(&leader, "open").await;
    let follower = client(&browser, &site, backend.port(), "").await;
    is_in_state(&follower, "open").await;
    publish(&backend, 1..=2).await;
    has_exactly(&follower, 1..=2).await;
    // A leader that has gone said this again, a little late; then one says what comes two events later.
    let pass_on = async |number: u32, ahead: u32| {
        let say = format!(
            "new BroadcastChannel(stream.channel.name).postMessage({{ kind: 'event', type: 'message', \
             detail: {{ id: '', data: {number} }}, line: stream.line, count: stream.count + {ahead}, cursor: 'late' }})"
        );
        leader.run(&say).await;
    };
    pass_on(2, 0).await;
    publish(&backend, [3]).await;
    has_exactly(&follower, 1..=3).await;
    assert_ne!(follower.run("return stream.cursor").await, "late");
    pass_on(5, 2).await;
    has(&follower, "gap").await;
    assert_eq!(seen(&follower, "gap").await[0]["reason"], "not_passed_on");
    assert_eq!(seen(&follower, "message").await, [1, 2, 3, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_leaves_a_line_that_is_dead_and_resumes() {
    let backend = Backend::alone(&flags(&["--heartbeat", "1"]));
    let line = Proxy::to(backend.port()).await;
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let tab = client(&browser, &site, line.port(), "shared: false").await;
    eventually("it has seen how often heartbeats come", SOON, async || {
        tab.run("return stream.silence < 10_000").await == true
    })
    .await;
    line.go_silent();
    publish(&backend, [1]).await;
    // This one never gets an answer at all.
    let late = client(&browser, &site, line.port(), "shared: false").await;
    is_in_state(&tab, "waiting").await;
    is_in_state(&late, "waiting").await;
    line.heal();
    has_exactly(&tab, [1]).await;
    is_in_state(&late, "open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_leaves_a_line_with_rare_heartbeats_alone() {
    let backend = Backend::alone(&flags(&["--heartbeat", "300"]));
    let (site, browser) = (Site::start().await, Browser::start().await);
    site.issue_at(backend.port());
    let tab = browser.open(&site.url("/page")).await;
    // What the client waits for, without waiting for it.
    tab.run("const real = setTimeout; window.waits = []; window.setTimeout = (then, ms) => { waits.push(ms); return real(then, ms); }")
        .await;
    tab.run(&format!("client({{ base: 'http://127.0.0.1:{}' }})", backend.port())).await;
    has(&tab, "snapshot").await;
    let waits = tab.run("return waits.at(-1)").await;
    assert!(waits.as_u64().unwrap() > 300_000, "{waits} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_page_connects_and_shows_what_comes() {
    let (site, browser) = (Site::start().await, Browser::start().await);
    let backend = Backend::alone(&["--allowed-origins", &site.url("")]);
    let tab = browser.open(&site.url("/")).await;
    tab.run(&format!(
        "document.getElementById('base').value = 'http://127.0.0.1:{}'; \
         document.getElementById('principal').value = '{PRINCIPAL_TOKEN}'; \
         document.getElementById('settings').requestSubmit()",
        backend.port()
    ))
    .await;
    let shows = async |text: &str| {
        eventually(&format!("the page shows {text}"), SOON, async || {
            tab.run("return document.body.innerText").await.as_str().unwrap().contains(text)
        })
        .await;
    };
    shows("this tab").await;
    let event = json!({ "event": "demo", "data": { "hello": "from the test" } });
    assert_eq!(backend.post(PUBLISH, &[AUTH], event.to_string()).await.status, 202);
    shows("from the test").await;
}
