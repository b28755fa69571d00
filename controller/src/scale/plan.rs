//! The scaling guide's decision tree: one instance, one with twice the resources, or several; with what each
//! carries, needs and costs. Pure; `vx11-controller plan` prints it and status carries its verdict. How many instances
//! a load takes is for [`decide`] to say.

use std::fmt::Write;

use serde::Serialize;

use super::{
    capacity::{CapacityModel, Load},
    decide::decide,
    history::History,
    observation::{Moment, Observation},
    policy::{Policy, Target},
    text::{counted, thousands},
};

/// Above this many issuances a minute the guide goes horizontal, whatever the clients.
const ISSUANCES_PER_MINUTE_SINGLE: u64 = 5000;
/// Price of an instance-hour in millionths of a dollar, from the guide: $0.05.
pub const DEFAULT_COST: u64 = 50_000;
/// A live token in Redis, measured: 60,000 take about 11 MiB.
const TOKEN_BYTES: u128 = 192;
/// Redis itself, and the events kept for resuming clients.
const REDIS_BASE_BYTES: u128 = 18 << 20;
/// Redis sizes are given in steps of this.
const REDIS_STEP_BYTES: u128 = 64 << 20;

/// What is to be planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What an instance carries.
    pub model: CapacityModel,
    /// The load to carry.
    pub load: Load,
    /// Fewest instances that the spec allows.
    pub min: u32,
    /// Most instances that the spec allows.
    pub max: u32,
    /// It must survive the loss of an instance.
    pub availability: bool,
    /// CPU of one instance in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory of one instance in bytes.
    pub memory_bytes: u64,
    /// Life of a token.
    pub token_ttl_seconds: u64,
    /// Price of an instance-hour in millionths of a dollar.
    pub cost: u64,
}

/// A way to run the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Strategy {
    /// One instance.
    Single,
    /// One instance with twice the CPU and memory, for twice the clients.
    Vertical,
    /// Several instances behind the load balancer, with Redis.
    Horizontal,
}

/// One way with its figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Which way.
    pub strategy: Strategy,
    /// Instances.
    pub instances: u32,
    /// What they carry.
    pub capacity: Load,
    /// How full they would be, in percent.
    pub utilization_percent: u64,
    /// CPU of all instances in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory of all instances in bytes.
    pub memory_bytes: u64,
    /// Memory of Redis in bytes; 0 where none is needed.
    pub redis_memory_bytes: u64,
    /// Dollars an hour for the instances, such as `0.15`.
    pub cost_per_hour: String,
    /// It carries the load and keeps what was asked.
    pub fits: bool,
    /// Why, or why not.
    pub note: String,
}

/// The ways, and the one to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The load planned for.
    pub load: Load,
    /// The way to take.
    pub recommended: Strategy,
    /// In one sentence.
    pub recommendation: String,
    /// All ways.
    pub variants: Vec<Variant>,
}

/// Plans for a load.
#[must_use]
pub fn plan(request: &Request) -> Plan {
    let Request { model, load, .. } = request;
    let doubled = CapacityModel {
        clients_per_instance: model.clients_per_instance.saturating_mul(TWO),
        issuances_per_second_per_instance: model.issuances_per_second_per_instance.saturating_mul(TWO),
        ..*model
    };
    let several_asked_for = asks_for_several(request);
    let alone = |model: &CapacityModel| match &several_asked_for {
        _ if instances(model, *load, 1) > 1 => (false, "too small for the load".to_owned()),
        Some(reason) => (false, reason.clone()),
        None => (true, "enough; a restart interrupts the streams".to_owned()),
    };
    let one = variant(request, Strategy::Single, model, 1, 1, alone(model));
    let two = variant(request, Strategy::Vertical, &doubled, 1, 2, alone(&doubled));
    let wanted = instances(model, *load, request.min.max(2));
    let fits = wanted <= request.max;
    let note = if fits {
        "survives the loss of an instance".to_owned()
    } else {
        format!("maxInstances is {}: raise it to {wanted}", request.max)
    };
    let several = variant(request, Strategy::Horizontal, model, wanted, 1, (fits, note));

    let (recommended, recommendation) = if one.fits {
        (Strategy::Single, format!("Single: {}", carries("one instance", model, *load)))
    } else if two.fits {
        let verdict = carries("one instance with twice the CPU and memory", &doubled, *load);
        let instead = counted(wanted.into(), "instance");
        (Strategy::Vertical, format!("Vertical: {verdict}; {instead} of the present size would do, too"))
    } else {
        let reason = several_asked_for.unwrap_or_else(|| exceeds(&doubled, *load));
        let limit = if fits { String::new() } else { format!(", {}", several.note) };
        let count = counted(wanted.into(), "instance");
        (Strategy::Horizontal, format!("Horizontal: {count} because {reason}{limit}"))
    };
    Plan { load: *load, recommended, recommendation, variants: vec![one, two, several] }
}

/// The count that the controller comes to for a known load: its own decision about a cluster that starts.
fn instances(model: &CapacityModel, load: Load, min: u32) -> u32 {
    let target = Target::Load { min, max: u32::MAX, expected: load };
    let policy = Policy { model: *model, target, ..Policy::default() };
    decide(&policy, &Observation::default(), &History::default(), Moment::default()).desired
}

/// Why one instance will not do, however large.
fn asks_for_several(Request { load, min, availability, .. }: &Request) -> Option<String> {
    let per_minute = load.issuances_per_second.saturating_mul(60);
    if *availability {
        Some("it must survive the loss of an instance".to_owned())
    } else if per_minute > ISSUANCES_PER_MINUTE_SINGLE {
        let (found, most) = (thousands(per_minute), thousands(ISSUANCES_PER_MINUTE_SINGLE));
        Some(format!("{found} issuances a minute are above {most}"))
    } else {
        (*min > 1).then(|| format!("minInstances is {min}"))
    }
}

fn carries(subject: &str, model: &CapacityModel, load: Load) -> String {
    let most = model.usable(1).clients;
    format!("{subject} carries {} of {}", counted(load.clients, "client"), thousands(most))
}

/// What of a load is too much for one instance of this size, twice as large as it is.
fn exceeds(doubled: &CapacityModel, load: Load) -> String {
    let most = doubled.usable(1);
    let (found, most) = if load.clients > most.clients {
        (counted(load.clients, "client"), most.clients)
    } else {
        (format!("{} issuances a second", thousands(load.issuances_per_second)), most.issuances_per_second)
    };
    format!("{found} are above the {} of one instance with twice the CPU and memory", thousands(most))
}

const TWO: std::num::NonZeroU64 = std::num::NonZeroU64::MIN.saturating_add(1);

fn variant(
    request: &Request,
    strategy: Strategy,
    model: &CapacityModel,
    instances: u32,
    size: u64,
    (fits, note): (bool, String),
) -> Variant {
    let capacity = model.capacity(instances);
    let times = u64::from(instances).saturating_mul(size);
    let several = strategy == Strategy::Horizontal;
    Variant {
        strategy,
        instances,
        capacity,
        utilization_percent: model.utilization_percent(request.load, instances),
        cpu_millis: request.cpu_millis.saturating_mul(times),
        memory_bytes: request.memory_bytes.saturating_mul(times),
        redis_memory_bytes: if several { redis_memory(capacity, request.token_ttl_seconds) } else { 0 },
        cost_per_hour: dollars(request.cost.saturating_mul(times)),
        fits,
        note,
    }
}

/// Memory that Redis needs for the tokens of a full cluster and the events, twice over for the copy that a
/// snapshot makes.
fn redis_memory(capacity: Load, token_ttl_seconds: u64) -> u64 {
    let tokens = u128::from(capacity.issuances_per_second) * u128::from(token_ttl_seconds);
    let bytes = (tokens.saturating_mul(TOKEN_BYTES) + REDIS_BASE_BYTES).saturating_mul(2);
    u64::try_from(bytes.div_ceil(REDIS_STEP_BYTES).saturating_mul(REDIS_STEP_BYTES)).unwrap_or(u64::MAX)
}

/// What `instances` cost an hour, in dollars such as `0.15`; `each` in millionths of a dollar.
#[must_use]
pub fn cost_per_hour(instances: u32, each: u64) -> String {
    dollars(each.saturating_mul(instances.into()))
}

fn dollars(millionths: u64) -> String {
    let fraction = format!("{:06}", millionths % 1_000_000);
    let fraction = fraction.trim_end_matches('0');
    format!("{}.{fraction:0<2}", millionths / 1_000_000)
}

/// Millionths of a dollar in a text such as `0.05`.
#[must_use]
pub fn parse_dollars(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let fraction: u64 = format!("{fraction:0<6}").parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(fraction)
}

impl Plan {
    /// The plan as a table for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![
            [
                "",
                "INSTANCES",
                "CLIENTS",
                "ISSUANCES/S",
                "UTIL%",
                "CPU",
                "MEMORY",
                "REDIS",
                "$/HOUR",
                "VERDICT",
            ]
            .map(str::to_owned),
        ];
        for variant in &self.variants {
            let redis = if variant.redis_memory_bytes == 0 {
                "-".to_owned()
            } else {
                bytes(variant.redis_memory_bytes)
            };
            rows.push([
                format!(
                    "{}{:?}",
                    if variant.strategy == self.recommended { "* " } else { "  " },
                    variant.strategy
                ),
                variant.instances.to_string(),
                thousands(variant.capacity.clients),
                thousands(variant.capacity.issuances_per_second),
                variant.utilization_percent.to_string(),
                cores(variant.cpu_millis),
                bytes(variant.memory_bytes),
                redis,
                variant.cost_per_hour.clone(),
                variant.note.clone(),
            ]);
        }
        let mut text = format!(
            "{} and {} issuances a second\n{}\n\n",
            counted(self.load.clients, "client"),
            thousands(self.load.issuances_per_second),
            self.recommendation
        );
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
                let _ = if column == 0 || column == row.len() - 1 {
                    write!(line, "{cell:<width$}  ")
                } else {
                    write!(line, "{cell:>width$}  ")
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Thousandths of a core as cores, such as `0.25`.
fn cores(millis: u64) -> String {
    let fraction = format!("{:03}", millis % 1000);
    format!("{}.{:0<2}", millis / 1000, fraction.trim_end_matches('0'))
}

/// Bytes in the largest unit that leaves nothing over.
fn bytes(bytes: u64) -> String {
    match bytes {
        whole if whole % (1 << 20) == 0 => format!("{}Mi", thousands(whole >> 20)),
        whole if whole % (1 << 10) == 0 => format!("{}Ki", thousands(whole >> 10)),
        other => thousands(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};
    use rstest::rstest;

    use super::*;
    use crate::scale::observation::Instance;

    fn request(clients: u64, issuances_per_second: u64) -> Request {
        Request {
            model: CapacityModel::default(),
            load: Load { clients, issuances_per_second },
            min: 1,
            max: 10,
            availability: false,
            cpu_millis: 1000,
            memory_bytes: 512 << 20,
            token_ttl_seconds: 60,
            cost: DEFAULT_COST,
        }
    }

    #[rstest]
    #[case(0, 0, Strategy::Single, 1)]
    #[case(499, 0, Strategy::Single, 1)]
    #[case(500, 83, Strategy::Single, 1)]
    #[case(501, 0, Strategy::Vertical, 1)]
    #[case(1000, 83, Strategy::Vertical, 1)]
    #[case(1001, 0, Strategy::Horizontal, 3)]
    #[case(100, 84, Strategy::Horizontal, 2)]
    #[case(700, 84, Strategy::Horizontal, 2)]
    #[case(1425, 2850, Strategy::Horizontal, 3)]
    #[case(1426, 0, Strategy::Horizontal, 4)]
    fn the_tree_branches_where_the_scaling_guide_does(
        #[case] clients: u64,
        #[case] rate: u64,
        #[case] strategy: Strategy,
        #[case] instances: u32,
    ) {
        let plan = plan(&request(clients, rate));
        assert_eq!(plan.recommended, strategy, "{}", plan.recommendation);
        let chosen = plan.variants.iter().find(|variant| variant.strategy == strategy).unwrap();
        assert_eq!(chosen.instances, instances);
        assert!(chosen.fits);
        assert!(plan.recommendation.starts_with(&format!("{strategy:?}: ")), "{}", plan.recommendation);
    }

    #[test]
    fn twice_the_resources_carry_twice_the_clients_on_one_instance() {
        let plan = plan(&request(1000, 0));
        let vertical = &plan.variants[1];
        assert_eq!((vertical.capacity.clients, vertical.fits), (1000, true));
        assert_eq!((vertical.cpu_millis, vertical.memory_bytes), (2000, 1 << 30));
        assert_eq!(
            plan.recommendation,
            "Vertical: one instance with twice the CPU and memory carries 1,000 clients of 1,000; 3 instances of the present size would do, too"
        );
        let above = super::plan(&request(1001, 0));
        assert!(!above.variants[1].fits);
        assert_eq!(
            above.recommendation,
            "Horizontal: 3 instances because 1,001 clients are above the 1,000 of one instance with twice the CPU and memory"
        );
    }

    #[test]
    fn what_is_too_much_is_named_by_whichever_load_it_is() {
        let slow = CapacityModel {
            issuances_per_second_per_instance: 10.try_into().unwrap(),
            ..CapacityModel::default()
        };
        let plan = plan(&Request { model: slow, ..request(100, 50) });
        assert!(
            plan.recommendation.contains("because 50 issuances a second are above the 20 of one"),
            "{}",
            plan.recommendation
        );
    }

    proptest! {
        #[test]
        fn a_plan_and_the_controller_come_to_the_same_count(
            clients in 0..200_000u64, rate in 0..200_000u64, min in 1..20u32, target in 1..=100u8,
        ) {
            let model = CapacityModel { target_utilization: target.try_into().unwrap(), ..CapacityModel::default() };
            let load = Load { clients, issuances_per_second: rate };
            let several = &plan(&Request { model, min, ..request(clients, rate) }).variants[2];
            let policy = Policy { model, target: Target::Load { min: min.max(2), max: 100_000, expected: Load::default() }, ..Policy::default() };
            let seen = Observation { replicas: 1, instances: vec![Instance::serving("a", clients, rate)], ..Observation::default() };
            let decision = decide(&policy, &seen, &History::default(), Moment(0));
            prop_assert_eq!(several.instances, decision.desired);
            prop_assert_eq!(several.utilization_percent, model.utilization_percent(load, decision.desired));
        }
    }

    #[test]
    fn the_table_and_the_json_carry_the_same_numbers() {
        let plan = plan(&Request { cpu_millis: 125, memory_bytes: 300_000_000, ..request(1425, 2850) });
        let json = serde_json::to_value(&plan).unwrap();
        let table = plan.table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(4)
            .map(|line| line.trim_start_matches("* ").split_whitespace().collect())
            .collect();
        assert_eq!(rows.len(), 3);
        let number = |text: &str| -> u64 {
            let (digits, unit) = match text.strip_suffix("Mi") {
                Some(digits) => (digits, 1 << 20),
                None => text.strip_suffix("Ki").map_or((text, 1), |digits| (digits, 1 << 10)),
            };
            if digits == "-" { 0 } else { digits.replace(',', "").parse::<u64>().unwrap() * unit }
        };
        for (row, variant) in rows.iter().zip(json["variants"].as_array().unwrap()) {
            assert_eq!(row[0], variant["strategy"]);
            assert_eq!(number(row[1]), variant["instances"]);
            assert_eq!(number(row[2]), variant["capacity"]["clients"]);
            assert_eq!(number(row[3]), variant["capacity"]["issuancesPerSecond"]);
            assert_eq!(number(row[4]), variant["utilizationPercent"]);
            let (whole, thousandths) = row[5].split_once('.').unwrap();
            assert_eq!(number(whole) * 1000 + number(&format!("{thousandths:0<3}")), variant["cpuMillis"]);
            assert_eq!(number(row[6]), variant["memoryBytes"]);
            assert_eq!(number(row[7]), variant["redisMemoryBytes"]);
            assert_eq!(row[8], variant["costPerHour"]);
        }
        assert!(table.contains(json["recommendation"].as_str().unwrap()), "{table}");
    }

    #[test]
    fn availability_asks_for_two_and_a_low_maximum_says_what_it_would_take() {
        let available = plan(&Request { availability: true, ..request(10, 0) });
        assert_eq!(available.recommended, Strategy::Horizontal);
        assert_eq!(available.variants[2].instances, 2);
        let limited = plan(&Request { max: 3, ..request(6400, 0) });
        assert!(!limited.variants[2].fits);
        assert!(
            limited.recommendation.contains("maxInstances is 3: raise it to 14"),
            "{}",
            limited.recommendation
        );
    }

    #[rstest]
    #[case(1, "0.05")]
    #[case(3, "0.15")]
    #[case(5, "0.25")]
    #[case(20, "1.00")]
    #[case(0, "0.00")]
    fn cost_follows_the_scaling_guide(#[case] instances: u32, #[case] cost: &str) {
        assert_eq!(cost_per_hour(instances, DEFAULT_COST), cost);
    }

    #[test]
    fn prices_are_read_exactly() {
        assert_eq!(parse_dollars("0.05"), Some(50_000));
        assert_eq!(parse_dollars("2"), Some(2_000_000));
        assert_eq!(parse_dollars("0.000001"), Some(1));
        for wrong in ["", ".", "-1", "1.0000001", "a", "1.2.3", "99999999999999999999"] {
            assert_eq!(parse_dollars(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_table_names_every_way_and_marks_one() {
        let table = plan(&request(1425, 2850)).table();
        assert!(table.contains("* Horizontal          3    1,425        2,850    100"), "{table}");
        assert!(table.contains("  Single "), "{table}");
        assert_eq!(table.matches('*').count(), 1);
    }
}
