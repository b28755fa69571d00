//! One instance of the backend in this process, with the router that a real one has.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
};

use operator_backend::{
    app::{self, App, Parts},
    auth::Authenticator,
    clock::ClusterClock,
    config::Config,
    drain::Drain,
    events::EventLog,
    identity::Identities,
    metrics::Metrics,
    redis_link::RedisLink,
    stream::{self, Engine},
    telemetry,
    token::Tokens,
};
use tokio::{net::TcpListener, sync::oneshot, task::AbortHandle};
use tracing_subscriber::{filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::common::leaked;

pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    pub(crate) events: EventLog,
    pub(crate) link: RedisLink,
    metrics: Arc<Metrics>,
    tasks: Vec<AbortHandle>,
    _engine: Engine,
    _stop: oneshot::Sender<()>,
}

impl Instance {
    pub(crate) async fn start(redis: u16, identities: &Identities) -> Self {
        let port = redis.to_string();
        let flags =
            ["--redis-host", "127.0.0.1", "--redis-port", &port, "--worker-threads", "1", "--heartbeat", "1"];
        let config = Config::from_flags(flags).ok().unwrap();
        let (metrics, clock) = (Arc::new(Metrics::new()), ClusterClock::new());
        let link = RedisLink::new(&config.redis, clock.clone(), Arc::clone(&metrics)).unwrap();
        let supervisor = tokio::spawn(link.clone().supervise(Vec::new)).abort_handle();
        let shared = Some(link.clone());
        let tokens =
            Tokens::new(&config.token, identities.clone(), clock, shared.clone(), Arc::clone(&metrics));
        let authenticator =
            Authenticator::new(identities.clone(), tokens.clone(), Arc::clone(&metrics), false);
        let events = EventLog::new(&config, shared.clone());
        let engine = Engine::start(&config, authenticator.clone(), events.clone(), Arc::clone(&metrics));
        let parts = Parts {
            authenticator,
            tokens,
            link: shared,
            events: events.clone(),
            engine: engine.clone(),
            drain: Drain::new(),
            metrics: Arc::clone(&metrics),
        };
        let router = app::router(Arc::new(App::new(&config, parts)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(stream::serve(
            stream::Port::new(listener).unwrap(),
            router,
            engine.clone(),
            async {
                let _ = stopped.await;
            },
        ));
        Self {
            address,
            events,
            link,
            metrics,
            tasks: vec![supervisor, server.abort_handle()],
            _engine: engine,
            _stop: stop,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        if !std::thread::panicking() {
            assert_eq!(leaked(&self.metrics.render()), None, "in the metrics");
        }
    }
}

/// What all instances of this process log, with every detail.
#[derive(Clone, Copy)]
pub(crate) struct Logged;

static LOGGED: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(Mutex::default);

impl Logged {
    pub(crate) fn begin() {
        tracing_subscriber::registry()
            .with(filter_fn(telemetry::is_ours_or_no_detail))
            .with(tracing_subscriber::fmt::layer().json().with_writer(Self))
            .init();
    }

    /// Fails when a secret was logged, or nothing at all.
    pub(crate) fn judge(secret: &str) {
        let text = String::from_utf8(std::mem::take(&mut *LOGGED.lock().unwrap())).unwrap();
        assert!(text.contains("Redis"), "the instances logged nothing");
        assert_eq!(leaked(&text), None, "in the log");
        assert!(!text.contains(secret), "a principal's token is in the log");
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logged {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
