//! What a decision and a look cost.

use std::{hint::black_box, time::Instant};

use vx11_controller::{
    admin_ports::AdminPorts,
    reconcile::scale::observe::{Asked, CONCURRENCY, LOOK_DEADLINE, ask_all},
    scale::{
        decide::decide,
        history::History,
        observation::{Instance, Moment, Observation, Observed, Reading},
        policy::{Policy, Target},
    },
};

use crate::{
    peers::{Kind, Server},
    process,
    report::{Report, section, spread},
};

const DECISIONS: usize = 200;
const INSTANCES: usize = 100;
const LOOKS: usize = 50;

/// Both.
pub async fn measure(report: &mut Report) {
    section("What a decision and a look cost");
    let (value, shown) = spread(&decisions());
    report.at_most("A scale-in decision for 1,000 instances", value, &format!("{shown} us"), 1000.0, "us");
    let (times, cpu) = looks().await;
    let (value, shown) = spread(&times);
    report.at_most("A look at 100 instances", value, &format!("{shown} ms"), 200.0, "ms");
    let (value, shown) = spread(&cpu);
    report.at_most("CPU of a look at 100 instances", value, &format!("{shown} ms"), 10.0, "ms of CPU");
}

/// Microseconds of each: the load has fallen, so that victims are chosen among all of them.
fn decisions() -> Vec<f64> {
    let policy = Policy {
        target: Target::Load {
            min: 1,
            max: 1000,
            expected: vx11_controller::scale::capacity::Load::default(),
        },
        scale_in_stabilization_seconds: 0,
        ..Policy::default()
    };
    let instances = (0..1000).map(|number| Instance {
        name: format!("simple-backend-{number:05}"),
        created: Moment(number * 1000),
        zone: Some(format!("zone-{}", number % 3)),
        pending: false,
        ready: true,
        terminating: false,
        gone_by: None,
        answered: true,
        mark: None,
        load: Observed::Known {
            value: Reading {
                streams: number % 400,
                issuances_per_second: Some(number % 70),
                draining: false,
            },
        },
    });
    let observation =
        Observation { replicas: 1000, instances: instances.collect(), ..Observation::default() };
    let now = Moment(10_000_000);
    // The load has asked for less for as long as a scale-in wants it to.
    let mut history = History::default();
    (now.0 - 60_000..now.0).step_by(5000).for_each(|at| history.record(Moment(at), 1, 60_000));
    let time = |_| {
        let begun = Instant::now();
        let decision = decide(black_box(&policy), black_box(&observation), black_box(&history), now);
        let took = begun.elapsed().as_secs_f64() * 1e6;
        assert!(!decision.victims.is_empty(), "a scale-in chooses instances: {decision:?}");
        took
    };
    (0..DECISIONS).map(time).collect()
}

/// Milliseconds and CPU milliseconds of each, at a hundred real instances.
async fn looks() -> (Vec<f64>, Vec<f64>) {
    let servers: Vec<Server> = (0..INSTANCES).map(|_| Server::start(Kind::OursAlone)).collect();
    let asked: Vec<Asked> =
        servers.iter().map(|server| Asked { address: Some(server.admin()), max_streams: 500 }).collect();
    let (ports, mut times, mut used) = (AdminPorts::default(), Vec::new(), Vec::new());
    for _ in 0..LOOKS {
        let (begun, cpu) = (Instant::now(), process::cpu_of(std::process::id()));
        let told = ask_all(&ports, asked.clone(), CONCURRENCY, LOOK_DEADLINE).await;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        used.push(process::cpu_of(std::process::id()).saturating_sub(cpu).as_secs_f64() * 1000.0);
        assert!(told.iter().all(Result::is_ok), "an instance did not answer");
    }
    (times, used)
}
