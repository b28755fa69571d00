//! The figures of the operator on the test cluster, section by section: what it costs, how soon it acts, and what
//! clients feel of it. The cluster is a real one; `make cluster` and `make images` come first.

mod apply;
mod footprint;
mod pure;
mod quiet;
mod reaction;
mod scaling;

use std::{pin::pin, time::Duration};

use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt};
use kube::{
    Api,
    api::{DynamicObject, WatchEvent, WatchParams},
};
use tokio::time::{Instant, timeout};

use crate::report::{Report, figure, machine};

type Options = crate::options::Options<Section>;

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    Pure,
    Apply,
    Reaction,
    Crossing,
    Silence,
    Quiet,
    Footprint,
}

/// Measures and prints.
pub fn run(options: &Options) {
    println!("{}", machine());
    let mut report = Report::default();
    if options.takes(&Section::Pure) {
        // One thread, as the controller has.
        let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().build();
        one_thread.expect("a runtime").block_on(pure::measure(&mut report));
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        if options.takes(&Section::Apply) {
            apply::measure(options.rounds, &mut report).await;
        }
        if options.takes(&Section::Reaction) {
            reaction::measure(&mut report).await;
        }
        if options.takes(&Section::Crossing) {
            scaling::crossing(&mut report).await;
        }
        if options.takes(&Section::Silence) {
            scaling::silence(&mut report).await;
        }
        if options.takes(&Section::Quiet) {
            quiet::measure(&mut report).await;
        }
        if options.takes(&Section::Footprint) {
            footprint::measure(&mut report).await;
        }
    });
    report.end();
}

/// Does something and tells how long after its beginning a watch shows an object as it should then be.
async fn until_seen(
    objects: &Api<DynamicObject>,
    name: &str,
    act: impl AsyncFnOnce(),
    is_so: impl Fn(&DynamicObject) -> bool,
) -> Duration {
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut watch = pin!(objects.watch(&only, "0").await.expect("a watch"));
    // The first news is the object as it was: the watch is under way.
    watch.next().await;
    let begun = Instant::now();
    act().await;
    let seen = async {
        while let Some(news) = watch.try_next().await.expect("news of the watch") {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = news
                && is_so(&object)
            {
                return;
            }
        }
        panic!("the watch of {name} ended");
    };
    timeout(Duration::from_mins(1), seen)
        .await
        .unwrap_or_else(|_| panic!("{name} did not become what it should be within a minute"));
    begun.elapsed()
}

/// Median and 99th percentile, in milliseconds, with how many there were.
fn shown(times: &mut [Duration]) -> (f64, String) {
    times.sort_unstable();
    let milliseconds = |percent: usize| {
        let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times[at].as_secs_f64() * 1000.0
    };
    let (p50, p99) = (milliseconds(50), milliseconds(99));
    (p99, format!("p99 {} ms, p50 {} ms of {}", figure(p99), figure(p50), times.len()))
}
