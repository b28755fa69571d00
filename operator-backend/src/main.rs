//! The operator-backend process: puts the parts together, follows signals, ends with code 0.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use operator_backend::{
    admin,
    app::{self, App, Parts},
    auth::Authenticator,
    clock::ClusterClock,
    config::Config,
    drain::{Drain, Phase},
    events::EventLog,
    identity::Identities,
    metrics::Metrics,
    redis_link::RedisLink,
    stream::{self, Engine},
    telemetry,
    token::Tokens,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// Gives memory back to the system once it is free, so that a storm of slow clients leaves no trace.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connections that may wait for being accepted: a reconnect storm arrives in one burst.
const BACKLOG: u32 = 4096;
/// How long the start waits for Redis. It serves without it too, but then begins degraded.
const REDIS_HEAD_START: Duration = Duration::from_millis(250);
/// What a drain may take beyond its window before the process ends anyway.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let config = Config::parse();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed.
            eprintln!("operator-backend: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> Result<(), Failure> {
    telemetry::start(&config.log)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.worker_threads > 0 {
        runtime.worker_threads(config.worker_threads);
    }
    let runtime = runtime.enable_all().build()?;
    let outcome = runtime.block_on(run(config));
    // What still runs has nothing left to say.
    runtime.shutdown_background();
    outcome
}

async fn run(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let metrics = Arc::new(Metrics::new());
    let drain = Drain::new();
    let clock = ClusterClock::new();
    let identities = Identities::load(&config.auth)?;
    tokio::spawn(identities.clone().follow(config.auth.clone()));

    let link = RedisLink::new(&config.redis, clock.clone(), Arc::clone(&metrics));
    let tokens = Tokens::new(&config.token, identities.clone(), clock, link.clone(), Arc::clone(&metrics));
    if let Some(link) = &link {
        let replayed = tokens.clone();
        tokio::spawn(link.clone().supervise(move || replayed.replay()));
        let _ = timeout(REDIS_HEAD_START, link.wait_up()).await;
    }
    let in_query = config.auth.accept_principal_token_in_query;
    let authenticator = Authenticator::new(identities, tokens.clone(), Arc::clone(&metrics), in_query);
    let events = EventLog::new(&config, link.clone());
    let engine = Engine::start(&config, authenticator.clone(), events.clone(), Arc::clone(&metrics));

    let public = stream::Port::new(listen(config.listen)?)?;
    let admin = listen(config.admin_listen)?;
    let parts = Parts {
        authenticator,
        tokens,
        link,
        events,
        engine: engine.clone(),
        drain: drain.clone(),
        metrics: Arc::clone(&metrics),
    };
    let app = Arc::new(App::new(&config, parts));
    tracing::info!(
        instance_id = app.instance_id,
        version = env!("CARGO_PKG_VERSION"),
        listen = %public.local_addr()?,
        admin_listen = %admin.local_addr()?,
        redis = config.redis.host().unwrap_or("none"),
        "serving"
    );

    tokio::spawn(admin::serve(admin, admin::router(Arc::clone(&app)), drain.clone()));
    let window = config.stream.drain_window();
    let delay = Duration::from_secs(config.stream.drain_delay_seconds.into());
    tokio::spawn(follow_drain(drain.clone(), engine.clone(), Arc::clone(&metrics), delay, window));
    let stopped = drain.clone();
    let public = tokio::spawn(stream::serve(public, app::router(app), engine.clone(), async move {
        stopped.stopped().await;
    }));

    signals.next().await;
    tracing::info!(streams = engine.streams(), seconds = window.as_secs(), "ending: draining");
    drain.terminate();
    tokio::select! {
        drained = timeout(window + DRAIN_GRACE, engine.drained()) => {
            drain.stop();
            if drained.is_err() {
                tracing::warn!(streams = engine.streams(), "ending with streams still open");
            }
            // Requests that are being answered get their answers.
            let _ = timeout(DRAIN_GRACE, public).await;
            tracing::info!("ended");
        }
        () = signals.next() => tracing::info!("ended at once, on a second signal"),
    }
    Ok(())
}

/// Keeps the streams in step with the drain state.
async fn follow_drain(
    drain: Drain,
    engine: Engine,
    metrics: Arc<Metrics>,
    delay: Duration,
    window: Duration,
) {
    let mut phases = drain.subscribe();
    while phases.changed().await.is_ok() {
        let phase = *phases.borrow_and_update();
        metrics.draining.set(i64::from(phase != Phase::Serving));
        match phase {
            Phase::Serving => engine.cancel_drain(),
            Phase::Draining => {
                engine.refuse_streams();
                // A stream that is closed before the load balancer knows would be sent back here.
                tokio::select! {
                    _ = phases.changed() => phases.mark_changed(),
                    () = drain.terminated() => engine.begin_drain(window),
                    () = tokio::time::sleep(delay) => engine.begin_drain(window),
                }
            }
            Phase::Stopped => return,
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    Ok(socket.listen(BACKLOG)?)
}

/// What asks the process to end: SIGTERM from the kubelet, SIGINT from a terminal.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, std::io::Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
