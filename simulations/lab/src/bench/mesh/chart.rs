//! The chart: one bar per contender and measure, as ratios to what is least possible.

use std::fmt::Write as _;

use firmesh_simulations::mesh::Topology;

use super::report::Row;

const LEFT: f64 = 150.0;
const WIDTH: f64 = 720.0;
const BAR: f64 = 18.0;
const COLOURS: [&str; 8] = [
    "#1f6feb", "#8b949e", "#a371f7", "#d29922", "#2da44e", "#cf222e", "#1b7c83", "#bf3989",
];

/// The rows as an SVG picture.
pub(super) fn svg(topology: &Topology, rows: &[Row]) -> String {
    type Measure = (&'static str, fn(&Row) -> Option<f64>);
    let measures: [Measure; 4] = [
        ("last node / bound", |row| Some(row.last_to_bound)),
        ("origin bytes / image", |row| Some(row.origin_to_image)),
        ("rack import / least", |row| Some(row.import_to_min)),
        ("rack export / least", |row| row.export_to_min),
    ];
    let longest = rows
        .iter()
        .flat_map(|row| measures.iter().filter_map(|(_, of)| of(row)))
        .fold(1.5, f64::max);
    let scale = (WIDTH - LEFT - 70.0) / longest;
    let (mut y, mut bars) = (56.0, String::new());
    for (name, of) in measures {
        let present: Vec<_> = rows.iter().filter_map(|row| Some((row, of(row)?))).collect();
        if present.is_empty() {
            continue;
        }
        let _infallible = write!(
            bars,
            r#"<text x="8" y="{:.1}" font-weight="bold">{name}</text>"#,
            y + 13.0
        );
        y += BAR + 4.0;
        for (at, (row, value)) in present.iter().enumerate() {
            let _infallible = write!(
                bars,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{}"/><text x="{:.1}" y="{:.1}">{value:.3}</text>"#,
                LEFT - 8.0,
                y + 13.0,
                row.contender.name(),
                value * scale,
                BAR - 3.0,
                COLOURS[at % COLOURS.len()],
                LEFT + value * scale + 6.0,
                y + 13.0,
            );
            y += BAR;
        }
        y += 10.0;
    }
    let least = LEFT + scale;
    let Topology {
        racks,
        nodes,
        origin_mbit,
        rack_mbit,
        node_mbit,
        size_mib,
    } = topology;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{:.0}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/><text x="8" y="22" font-size="15">{racks} racks x {nodes} nodes, {size_mib} MiB; origin {origin_mbit}, rack {rack_mbit}, node {node_mbit} Mbit/s</text><text x="8" y="40" fill="#57606a">1.0 is the least possible; median of {} runs</text>{bars}<line x1="{least:.1}" y1="48" x2="{least:.1}" y2="{y:.1}" stroke="#24292f" stroke-dasharray="4 3"/></svg>"##,
        y + 10.0,
        rows.iter().map(|row| row.runs).max().unwrap_or(0),
    )
}
