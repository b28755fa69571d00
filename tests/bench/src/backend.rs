//! The figures of the backend, section by section. Servers take turns within each round, so that what the machine does
//! besides meets all of them.

use std::{thread::sleep, time::Duration};

use clap::ValueEnum;

use crate::{
    load::{
        self, Subscribers,
        subscribers::{Command, Report as Delivered},
    },
    peers::{Kind, LOAD, Server, principal_header},
    process::{self, Awake},
    report::{Report, figure, machine, section, spread},
};

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
/// Events of a storm.
const STORM: u64 = 150;
/// How FastAPI is spared: at 10,000 subscribers a round of it would take minutes.
const FEW: usize = 2_000;

type Options = crate::options::Options<Section>;
type Measure = fn(&Options, &mut Report);

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    FanOut,
    Latency,
    Memory,
    Issuance,
    Fleet,
    Soak,
}

/// Measures and prints.
pub fn run(options: &Options) {
    println!("{}", machine());
    println!(
        "Servers on processor 0, load and Redis on processor 1; {} rounds, servers in turn.",
        options.rounds
    );
    let mut report = Report::default();
    let sections: [(Section, Measure); 6] = [
        (Section::FanOut, fan_out),
        (Section::Latency, latency),
        (Section::Memory, memory),
        (Section::Issuance, issuance),
        (Section::Fleet, fleet),
        (Section::Soak, soak),
    ];
    for (name, measure) in sections {
        if options.takes(&name) {
            measure(options, &mut report);
        }
    }
    report.end();
}

fn complete(delivered: &Delivered, streams: usize, events: u64, who: &str) {
    let all = streams as u64 * events;
    assert!(
        delivered.delivered == all
            && delivered.missing == 0
            && delivered.doubled == 0
            && delivered.broken == 0,
        "{who}: of {all} deliveries {} came, {} are missing, {} came twice, {} streams broke",
        delivered.delivered,
        delivered.missing,
        delivered.doubled,
        delivered.broken,
    );
}

fn connect(load: &mut Subscribers, server: &Server, clients: usize) {
    let before = load.run(&Command::Settle).open;
    let opened = load.run(&Command::Connect { clients, path: server.stream_path(), next: 0 });
    assert_eq!(opened.open - before, clients, "{}: streams that opened", server.kind.name());
    load.run(&Command::Settle);
}

#[derive(Default)]
struct FanOut {
    cpu_per_event: Vec<f64>,
    cpu_per_connect: Vec<f64>,
    idle: Vec<f64>,
    after_traffic: Vec<f64>,
    generator: Vec<f64>,
}

/// 10,000 subscribers, each next event as soon as all of them have the last.
fn fan_out(options: &Options, report: &mut Report) {
    let kinds =
        [Kind::Floor, Kind::Ours, Kind::OursTwice, Kind::OursAlone, Kind::Nchan, Kind::Axum, Kind::FastApi];
    let mut results: Vec<FanOut> = kinds.iter().map(|_| FanOut::default()).collect();
    for round in 0..options.rounds {
        for turn in 0..kinds.len() {
            let which = (turn + round) % kinds.len();
            let (kind, result) = (kinds[which], &mut results[which]);
            let (clients, events) = if kind == Kind::FastApi { (FEW, 20) } else { (10_000, 60) };
            let server = Server::start(kind);
            let mut load = Server::subscribers(&[&server], 1);
            let (memory, cpu) = (server.memory(), server.cpu());
            connect(&mut load, &server, clients);
            let per_client = |bytes: u64| (bytes.saturating_sub(memory)) as f64 / clients as f64 / KIB;
            result.cpu_per_connect.push(micros(server.cpu().saturating_sub(cpu)) / clients as f64);
            result.idle.push(per_client(server.memory()));
            let warm_up = load.run(&Command::Publish { events: 2, rate: 0.0, filling: 0 });
            complete(&warm_up, clients, 2, kind.name());
            let cpu = server.cpu();
            let delivered = load.run(&Command::Publish { events, rate: 0.0, filling: 0 });
            let cpu = server.cpu().saturating_sub(cpu);
            complete(&delivered, clients, events, kind.name());
            let deliveries = (clients as u64 * events) as f64;
            result.cpu_per_event.push(micros(cpu) / deliveries);
            result.generator.push(delivered.cpu_seconds * 1e6 / deliveries);
            result.after_traffic.push(per_client(server.memory()));
        }
    }
    let of =
        |kind: Kind| &results[kinds.iter().position(|other| *other == kind).expect("a kind of this list")];
    let ratios = |of: &FanOut, to: &FanOut| -> Vec<f64> {
        of.cpu_per_event.iter().zip(&to.cpu_per_event).map(|(ours, theirs)| theirs / ours).collect()
    };
    section("Fan-out to 10,000 subscribers on one core");
    for (kind, result) in kinds.iter().zip(&results) {
        let what = format!("CPU for each delivered event, {}", kind.name());
        report.note(&what, &format!("{} us", spread(&result.cpu_per_event).1));
    }
    report.note(
        "CPU of the load generator for each of ours",
        &format!("{} us", spread(&of(Kind::Ours).generator).1),
    );
    let (value, shown) = spread(&ratios(of(Kind::Ours), of(Kind::Floor)));
    report.at_least("Floor's CPU for an event to ours, with Redis", value, &shown, 0.85, "");
    let (value, shown) = spread(&ratios(of(Kind::Ours), of(Kind::Nchan)));
    report.at_least("nchan's CPU for an event to ours", value, &shown, 1.0, "");
    report.note("Textbook axum's to ours", &spread(&ratios(of(Kind::Ours), of(Kind::Axum))).1);
    report
        .note("FastAPI's to ours (2,000 subscribers)", &spread(&ratios(of(Kind::Ours), of(Kind::FastApi))).1);
    let (value, shown) = spread(
        &ratios(of(Kind::OursTwice), of(Kind::Ours)).iter().map(|ratio| 1.0 / ratio).collect::<Vec<_>>(),
    );
    report.at_most("CPU for an event with two workers to that with one", value, &shown, 1.15, "");
    section("Connections, 10,000 on one core");
    for (kind, result) in kinds.iter().zip(&results) {
        report.note(
            &format!("CPU for each connect, {}", kind.name()),
            &format!("{} us", spread(&result.cpu_per_connect).1),
        );
        report.note(
            &format!("User memory of an idle stream, {}", kind.name()),
            &format!("{} KiB", spread(&result.idle).1),
        );
    }
    let (value, shown) = spread(&of(Kind::Ours).cpu_per_connect);
    report.at_most(
        "CPU for each connect with its token checked in Redis",
        value,
        &format!("{shown} us"),
        40.0,
        "us",
    );
    let (value, shown) = spread(&of(Kind::Ours).idle);
    report.at_most("User memory of an idle stream", value, &format!("{shown} KiB"), 1.5, "KiB");
    let (value, shown) = spread(&of(Kind::Ours).after_traffic);
    report.at_most("User memory of a stream after traffic", value, &format!("{shown} KiB"), 2.5, "KiB");
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A percentile of each round.
fn milliseconds(of: &[load::Latency], percentile: fn(&load::Latency) -> u32) -> Vec<f64> {
    of.iter().map(|latency| f64::from(percentile(latency)) / 1000.0).collect()
}

/// 500 subscribers, 20 events a second.
fn latency(options: &Options, report: &mut Report) {
    let kinds = [Kind::Floor, Kind::Ours, Kind::OursAlone, Kind::Nchan, Kind::Axum, Kind::FastApi];
    let mut results: Vec<Vec<load::Latency>> = kinds.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        for turn in 0..kinds.len() {
            let which = (turn + round) % kinds.len();
            process::rest();
            let _awake = Awake::keep();
            let server = Server::start(kinds[which]);
            let mut load = Server::subscribers(&[&server], 2);
            connect(&mut load, &server, 500);
            load.run(&Command::Publish { events: 10, rate: 20.0, filling: 0 });
            let delivered = load.run(&Command::Publish { events: 240, rate: 20.0, filling: 0 });
            complete(&delivered, 500, 240, kinds[which].name());
            results[which].push(delivered.latency);
        }
    }
    section("500 subscribers at 20 events a second, publish to delivery");
    let p99 = |which: usize| milliseconds(&results[which], |latency| latency.undisturbed_p99);
    for (which, kind) in kinds.iter().enumerate() {
        let p50 = milliseconds(&results[which], |latency| latency.p50);
        report.note(kind.name(), &format!("p50 {} ms, p99 {} ms", spread(&p50).1, spread(&p99(which)).1));
    }
    let ratio = |which: usize| -> Vec<f64> {
        p99(which).iter().zip(p99(0)).map(|(ours, floor)| ours / floor).collect()
    };
    let (value, shown) = spread(&ratio(1));
    report.at_most("p99 to the floor's, with Redis", value, &shown, 1.3, "");
    report.note("p99 to the floor's, in memory", &spread(&ratio(2)).1);
}

/// What a process with streams weighs, and what idle streams cost.
fn memory(_: &Options, report: &mut Report) {
    section("Memory and idleness");
    let server = Server::with(Kind::Ours, &["--heartbeat", "300"]);
    let mut load = Server::subscribers(&[&server], 3);
    connect(&mut load, &server, 500);
    load.run(&Command::Publish { events: 50, rate: 20.0, filling: 0 });
    let whole = server.memory() as f64 / MIB;
    report.at_most("Whole process with 500 clients", whole, &format!("{} MiB", figure(whole)), 12.0, "MiB");
    connect(&mut load, &server, 19_000);
    let whole = server.memory() as f64 / MIB;
    report.at_most(
        "Whole process with 19,500 clients",
        whole,
        &format!("{} MiB", figure(whole)),
        45.0,
        "MiB",
    );
    load.run(&Command::Publish { events: 20, rate: 0.0, filling: 0 });
    let whole = server.memory() as f64 / MIB;
    report.note("The same after 20 events to all", &format!("{} MiB", figure(whole)));
    sleep(Duration::from_secs(2));
    let (cpu, time) = (server.cpu(), Duration::from_secs(20));
    sleep(time);
    let with_streams = micros(server.cpu().saturating_sub(cpu)) / time.as_secs_f64();
    load.run(&Command::Close);
    sleep(Duration::from_secs(3));
    let cpu = server.cpu();
    sleep(time);
    let without = micros(server.cpu().saturating_sub(cpu)) / time.as_secs_f64();
    let each = (with_streams - without) / 19_500.0;
    let shown = format!(
        "{} us a second ({} us with 19,500 streams, {} us with none)",
        figure(each),
        figure(with_streams),
        figure(without)
    );
    report.at_most("CPU of an idle stream, with a heartbeat every 300 s", each, &shown, 0.1, "us a second");
}

fn ask(server: &Server, path: &str, header: &str, more: &[String]) -> load::requests::Report {
    let mut options = vec![format!("--target=127.0.0.1:{}", server.port()), format!("--path={path}")];
    options.push(format!("--header={header}"));
    options.extend_from_slice(more);
    let outcome = load::requests(LOAD, &options);
    assert_eq!(outcome.wrong, 0, "{}: answers to {path} that were not as they should be", server.kind.name());
    outcome
}

/// Tokens: as many as one core gives out, and how long one takes.
fn issuance(options: &Options, report: &mut Report) {
    const ISSUE: &str = "/operator/api/events/sse-token";
    let (mut ours, mut no_op, mut fast_api) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at_rate, mut checks, mut nothing_at_rate) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu_ours, mut cpu_no_op) = (Vec::new(), Vec::new());
    let header = principal_header();
    // A token that Redis does not know: its look-up is the whole check, and the connection is kept.
    let unknown = "/operator/api/events/stream?token=7b2c6e0e-4f3a-4c58-9a39-6c1f5b0d9e11";
    for _ in 0..options.rounds {
        let server = Server::start(Kind::Ours);
        let at = |rate: u32, path: &str, header: &str, status: u16| {
            process::rest();
            let _awake = Awake::keep();
            let asked = [format!("--rate={rate}"), "--seconds=10".to_owned(), format!("--status={status}")];
            ask(&server, path, header, &asked).latency
        };
        at_rate.push(at(5_000, ISSUE, &header, 200));
        checks.push(at(10_000, unknown, "accept: */*", 403));
        nothing_at_rate.push(at(10_000, "/nothing", &header, 404));
        let saturate = |path: &str, status: u16| {
            process::rest();
            let before = server.cpu();
            let outcome =
                ask(&server, path, &header, &["--seconds=4".to_owned(), format!("--status={status}")]);
            let cpu = micros(server.cpu().saturating_sub(before)) / outcome.answered as f64;
            (outcome.per_second, cpu)
        };
        let (per_second, cpu) = saturate("/nothing", 404);
        no_op.push(per_second);
        cpu_no_op.push(cpu);
        let (per_second, cpu) = saturate(ISSUE, 200);
        ours.push(per_second);
        cpu_ours.push(cpu);
        drop(server);
        let server = Server::start(Kind::FastApi);
        process::rest();
        fast_api.push(ask(&server, ISSUE, &header, &["--seconds=4".to_owned()]).per_second);
    }
    let ratio = |of: &[f64], to: &[f64]| -> Vec<f64> { of.iter().zip(to).map(|(of, to)| of / to).collect() };
    let p99 = |of: &[load::Latency]| -> (f64, String) {
        let (value, shown) = spread(&milliseconds(of, |latency| latency.undisturbed_p99));
        (value, format!("{shown} ms"))
    };
    section("Tokens, one core, Redis on the other");
    report.note("Issued a second", &spread(&ours).1);
    report.note("Answers a second of the route that does nothing", &spread(&no_op).1);
    report.note("Issued a second by FastAPI with redis.asyncio", &spread(&fast_api).1);
    report.note("Issuance to the route that does nothing", &spread(&ratio(&ours, &no_op)).1);
    report.note("CPU of an issuance", &format!("{} us", spread(&cpu_ours).1));
    report.note("CPU of the route that does nothing", &format!("{} us", spread(&cpu_no_op).1));
    let (value, shown) = spread(&ratio(&cpu_no_op, &cpu_ours));
    report.at_least("Issuances to answers that do nothing, for the same CPU", value, &shown, 0.5, "");
    let (value, shown) = spread(&ratio(&ours, &fast_api));
    report.at_least("Issuance to FastAPI's", value, &shown, 12.0, "");
    let (value, shown) = p99(&at_rate);
    report.at_most("p99 of issuance at 5,000 a second", value, &shown, 2.0, "ms");
    let (value, shown) = p99(&checks);
    report.at_most("p99 of a check at 10,000 a second", value, &shown, 0.5, "ms");
    report.note("p99 of the route that does nothing at 10,000 a second", &p99(&nothing_at_rate).1);
    let disturbed: Vec<f64> = checks.iter().map(|latency| latency.disturbed * 100.0).collect();
    let all = milliseconds(&checks, |latency| latency.p99);
    report.note(
        "Checks that were set aside, as a processor stood still meanwhile",
        &format!("{} %", spread(&disturbed).1),
    );
    report.note("p99 of a check with these", &format!("{} ms", spread(&all).1));
}

/// 50,000 streams over three instances on this machine, and one event to all.
fn fleet(_: &Options, report: &mut Report) {
    const EACH: usize = 16_667;
    let flags = ["--signing-keys-dir".to_owned(), signing_keys()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let first = Server::with(Kind::Ours, &flags);
    let others = [Server::another(first.redis_port(), &flags), Server::another(first.redis_port(), &flags)];
    let servers = [&first, &others[0], &others[1]];
    let mut loads: Vec<Subscribers> =
        (10..).zip(servers).map(|(source, server)| Server::subscribers(&[server], source)).collect();
    let begun = std::time::Instant::now();
    for load in &mut loads {
        load.send(&Command::Connect { clients: EACH, path: first.stream_path(), next: 0 });
    }
    let open: usize = loads.iter_mut().map(|load| load.report().open).sum();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(open, 3 * EACH, "streams that opened");
    section("Three instances on this machine");
    let shown = format!("{} s", figure(took));
    report.at_most(&format!("{open} streams connected"), took, &shown, 10.0, "s");
    for load in &mut loads {
        load.run(&Command::Settle);
    }
    let begun = std::time::Instant::now();
    for load in &mut loads[1..] {
        load.send(&Command::Await { events: 1 });
    }
    loads[0].send(&Command::Publish { events: 1, rate: 0.0, filling: 0 });
    let mut delivered = 0;
    for load in &mut loads {
        let report = load.report();
        complete(&report, EACH, 1, "three instances");
        delivered += report.delivered;
    }
    report.note(
        "One event to all of them",
        &format!("{delivered} of {open} in {} s", figure(begun.elapsed().as_secs_f64())),
    );
    let memory: u64 = servers.iter().map(|server| server.memory()).sum();
    report.note("Memory of the three", &format!("{} MiB", figure(memory as f64 / MIB)));
    let _ = std::fs::remove_dir_all(flags[1]);
}

fn signing_keys() -> String {
    let directory = std::env::temp_dir().join(format!("vx11-bench-keys-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    std::fs::write(directory.join("current"), "signing-key-of-the-benchmark-0123456789").expect("a file");
    directory.to_string_lossy().into_owned()
}

/// A million connections, and storms of clients that do not read.
fn soak(_: &Options, report: &mut Report) {
    section("Memory in the long run");
    // As many events are kept as one storm has, so that the log itself weighs the same before and after.
    let server = Server::with(Kind::Ours, &["--event-history", &STORM.to_string()]);
    let mut load = Server::subscribers(&[&server], 30);
    let mut churn = |connections: usize| {
        // A token lives 60 s, and so may a round of this.
        let rounds = connections.div_ceil(100_000);
        for _ in 0..rounds {
            let done =
                load.run(&Command::Churn { connections: connections / rounds, path: server.stream_path() });
            assert_eq!((done.missing, done.broken), (0, 0), "connections that did not become streams");
        }
        settled(&server)
    };
    let plateau = churn(100_000);
    let after = churn(1_000_000);
    let shown = format!("{} (from {} to {} MiB)", figure(after / plateau), figure(plateau), figure(after));
    report.at_most(
        "After 1,000,000 connections to after the first 100,000",
        after / plateau,
        &shown,
        1.1,
        "",
    );
    drop(load);

    let storm = |reads: bool| {
        let mut load = Server::subscribers(&[&server], 31);
        if reads {
            connect(&mut load, &server, 2_000);
        } else {
            load.run(&Command::Stall { clients: 2_000, path: server.stream_path() });
        }
        // More than their sockets take, for longer than a slow client is waited for.
        load.run(&Command::Publish { events: STORM, rate: 10.0, filling: 4_000 });
        drop(load);
        settled(&server)
    };
    let plateau = storm(true);
    let storms = [storm(false), storm(false), storm(false)];
    let highest = storms.into_iter().fold(0.0, f64::max);
    let shown =
        format!("{} (from {} to {} MiB)", figure(highest / plateau), figure(plateau), figure(highest));
    report.at_most(
        "After the worst of three storms of 2,000 clients that do not read, to after 2,000 that do",
        highest / plateau,
        &shown,
        1.1,
        "",
    );
}

/// Memory, MiB, once what is free has been given back: the allocator keeps it for ten seconds.
fn settled(server: &Server) -> f64 {
    sleep(Duration::from_secs(15));
    server.memory() as f64 / MIB
}
