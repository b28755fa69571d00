//! The scaling guide's decision tree: one instance, one with twice the resources, or several; with what each
//! carries, needs and costs. Pure; `vx11-controller plan` prints it and status carries its verdict.

use std::fmt::Write;

use serde::Serialize;

use super::{
    capacity::{CapacityModel, Load},
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
    let single = model.needed(*load) == 1;
    let doubled = CapacityModel {
        clients_per_instance: model.clients_per_instance.saturating_mul(TWO),
        issuances_per_second_per_instance: model.issuances_per_second_per_instance.saturating_mul(TWO),
        ..*model
    };
    let per_minute = load.issuances_per_second.saturating_mul(60);
    let many_issuances = per_minute > ISSUANCES_PER_MINUTE_SINGLE;
    let reason = if request.availability {
        Some("it must survive the loss of an instance".to_owned())
    } else if many_issuances {
        Some(format!(
            "{} issuances a minute are above {}",
            thousands(per_minute),
            thousands(ISSUANCES_PER_MINUTE_SINGLE)
        ))
    } else if request.min > 1 {
        Some(format!("minInstances is {}", request.min))
    } else if !single {
        Some(format!(
            "{} are above the {} of one instance",
            counted(load.clients, "client"),
            thousands(model.clients_each(1))
        ))
    } else {
        None
    };
    let alone = |enough: bool| match (&reason, enough) {
        (_, false) => (false, "too small for the load".to_owned()),
        (Some(reason), true) if request.availability || many_issuances || request.min > 1 => {
            (false, reason.clone())
        }
        (_, true) => (true, "enough; a restart interrupts the streams".to_owned()),
    };

    let one = variant(request, Strategy::Single, model, 1, 1, alone(single));
    let two = variant(request, Strategy::Vertical, &doubled, 1, 2, alone(doubled.needed(*load) == 1));
    let floor = request.min.max(2);
    let wanted = model.needed(*load).max(floor);
    let several = variant(request, Strategy::Horizontal, model, wanted, 1, {
        let fits = wanted <= request.max;
        let note = if fits {
            "survives the loss of an instance".to_owned()
        } else {
            format!("maxInstances is {}: raise it to {wanted}", request.max)
        };
        (fits, note)
    });

    let (recommended, recommendation) = match &reason {
        None => (
            Strategy::Single,
            format!(
                "Single: one instance carries {} of {}",
                counted(load.clients, "client"),
                thousands(model.clients_each(1))
            ),
        ),
        Some(reason) => {
            let limit = if several.fits { String::new() } else { format!(", {}", several.note) };
            let vertical = if two.fits {
                format!(
                    "; one instance with twice the CPU and memory would do up to {} clients",
                    thousands(two.capacity.clients)
                )
            } else {
                String::new()
            };
            (
                Strategy::Horizontal,
                format!(
                    "Horizontal: {} because {reason}{limit}{vertical}",
                    counted(wanted.into(), "instance")
                ),
            )
        }
    };
    Plan { load: *load, recommended, recommendation, variants: vec![one, two, several] }
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
                mebibytes(variant.redis_memory_bytes)
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
                format!("{}.{:02}", variant.cpu_millis / 1000, variant.cpu_millis % 1000 / 10),
                mebibytes(variant.memory_bytes),
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

fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", thousands(bytes.div_ceil(1 << 20)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

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
    #[case(499, 0, Strategy::Single, 1)]
    #[case(500, 83, Strategy::Single, 1)]
    #[case(501, 0, Strategy::Horizontal, 2)]
    #[case(100, 84, Strategy::Horizontal, 2)]
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
    }

    #[test]
    fn twice_the_resources_carry_twice_the_clients_on_one_instance() {
        let plan = plan(&request(1000, 0));
        let vertical = &plan.variants[1];
        assert_eq!((vertical.capacity.clients, vertical.fits), (1000, true));
        assert_eq!((vertical.cpu_millis, vertical.memory_bytes), (2000, 1 << 30));
        assert!(
            plan.recommendation.contains("twice the CPU and memory would do up to 1,000"),
            "{}",
            plan.recommendation
        );
        assert!(!super::plan(&request(1001, 0)).variants[1].fits);
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
