//! Values in BPF maps that are read with each sample: found once per scheduler, then only their bytes are read.
//!
//! A value is read only while its map is still the map it was found in. One that was never found is reported as
//! missing, never as 0.

use ktstr_proto::link::chain;
use ktstr_proto::map_watch::{Aggregate, MapMetric, MapWatch};

use crate::addr::{CpuId, Kva};
use crate::bpf::path::{Path, Place};
use crate::bpf::{BpfLayout, MapInfo, ProgramInfo, Reader, follow_all, the_map};
use crate::kernel::{LiveKernel, Profile, View};
use crate::mem::GuestMem;
use crate::types::{IntKind, Ty};

/// Looks after which what was not found is looked for again: some tenths of a second at the usual period.
const RETRY: u32 = 5;

/// All that a run watches.
#[derive(Debug, Default)]
pub struct MapWatches {
    watches: Vec<Watch>,
    /// The scheduler whose maps were looked through last.
    instance: u64,
    /// Looks since then.
    since: u32,
}

#[derive(Debug)]
struct Watch {
    wanted: MapWatch,
    path: Result<Path, String>,
    places: Vec<Found>,
    /// The map's name without its section.
    object: Option<String>,
    why_not: Option<String>,
    sums: Sums,
}

/// Where a value lies, as long as this map is there.
#[derive(Debug)]
struct Found {
    map_at: Kva,
    map_id: u32,
    at: Kva,
    place: Place,
}

/// What the samples add up to.
#[derive(Debug, Default, Clone, PartialEq)]
struct Sums {
    samples: u32,
    values: u32,
    sum: f64,
    max: f64,
    last: f64,
}

impl Sums {
    /// One sample: the value of each CPU, or the one value.
    fn add(&mut self, values: &[f64]) {
        self.max = values.iter().copied().fold(if self.samples == 0 { f64::MIN } else { self.max }, f64::max);
        self.samples += 1;
        self.values += values.len() as u32;
        self.sum += values.iter().sum::<f64>();
        self.last = values.iter().sum();
    }

    fn metrics(&self, name: &str, aggregate: Aggregate) -> Vec<MapMetric> {
        if self.samples == 0 {
            return Vec::new();
        }
        let metric =
            |ending: &str, value| MapMetric { name: format!("{name}{ending}"), value, samples: self.samples };
        let mean = self.sum / f64::from(self.values.max(1));
        match aggregate {
            Aggregate::Scalar => vec![metric("", mean)],
            Aggregate::ScalarCounter | Aggregate::PerCpuCounter => vec![metric("", self.last)],
            Aggregate::PerCpu => vec![metric("_avg", mean), metric("_max", self.max)],
        }
    }
}

impl MapWatches {
    /// To watch these.
    pub fn new(wanted: &[MapWatch]) -> Self {
        let watch = |wanted: &MapWatch| Watch {
            wanted: wanted.clone(),
            path: wanted.path.parse::<Path>().map_err(|error| chain(&error)),
            places: Vec::new(),
            object: None,
            why_not: None,
            sums: Sums::default(),
        };
        Self { watches: wanted.iter().map(watch).collect(), instance: 0, since: 0 }
    }

    /// What was sampled so far does not count.
    pub fn restart(&mut self) {
        self.watches.iter_mut().for_each(|watch| watch.sums = Sums::default());
    }

    /// Takes one sample.
    pub fn look(&mut self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) {
        if self.watches.is_empty() {
            return;
        }
        let view = View { profile, live, mem: live.view(mem) };
        let instance = view.word("scx_root").unwrap_or(0);
        let layout = BpfLayout::of(profile.types());
        let reader = Reader::new(profile, live, live.view(mem), &layout);
        // Without a scheduler there may be maps all the same, but nobody who changes them.
        let fresh = instance != 0 && instance != self.instance;
        // A map may come later than its scheduler, and a look may meet it half made.
        let lacking = instance != 0 && self.watches.iter().any(|watch| watch.places.is_empty());
        self.since += 1;
        if fresh || (lacking && self.since >= RETRY) {
            self.instance = instance;
            self.since = 0;
            self.find(&reader, fresh);
        }
        for watch in self.watches.iter_mut().filter(|watch| !watch.places.is_empty()) {
            let values: Option<Vec<f64>> = watch.places.iter().map(|found| found.value(&reader)).collect();
            match values {
                Some(values) => watch.sums.add(&values),
                None => {
                    // Found anew with the next scheduler, or when this one has its maps.
                    watch.places.clear();
                    self.instance = 0;
                }
            }
        }
    }

    /// All of them, or those that were not found yet.
    fn find(&mut self, reader: &Reader<'_>, all: bool) {
        let (Ok(maps), Ok(programs)) = (reader.maps(), reader.programs()) else { return };
        let follow = follow_all(reader, &programs.items, &maps.items);
        for watch in self.watches.iter_mut().filter(|watch| all || watch.places.is_empty()) {
            let found = watch.find(reader, &maps.items, &programs.items, &follow);
            watch.why_not = found.err();
        }
    }

    /// The metrics, and why others are missing.
    pub fn summary(&self) -> (Vec<MapMetric>, Vec<String>) {
        let (mut metrics, mut missing) = (Vec::new(), Vec::new());
        for watch in &self.watches {
            let MapWatch { map, path, aggregate, label } = &watch.wanted;
            let object = watch.object.as_deref().unwrap_or(map);
            let own = watch.sums.metrics(&format!("{object}_{label}"), *aggregate);
            if own.is_empty() {
                let why = watch
                    .why_not
                    .clone()
                    .unwrap_or_else(|| "no sample was taken while a scenario ran".into());
                missing.push(format!("{path} in {map} was not watched: {why}"));
            }
            metrics.extend(own);
        }
        (metrics, missing)
    }
}

impl Watch {
    fn find(
        &mut self,
        reader: &Reader<'_>,
        maps: &[MapInfo],
        programs: &[ProgramInfo],
        follow: &crate::bpf::Follow<'_, '_>,
    ) -> Result<(), String> {
        let path = self.path.clone()?;
        let meant = the_map(reader, maps, programs, &self.wanted.map).map_err(|error| chain(&error))?;
        let Some(map) = meant else {
            let names: Vec<&str> = maps.iter().map(|map| map.name.as_str()).collect();
            return Err(format!("no map is called so; there are {}", names.join(", ")));
        };
        self.object = Some(map.name.split('.').next().unwrap_or(&map.name).to_owned());
        let per_cpu = matches!(self.wanted.aggregate, Aggregate::PerCpu | Aggregate::PerCpuCounter);
        let cpus: Vec<Option<CpuId>> = if per_cpu {
            reader.live().cpus().iter().map(|area| Some(area.cpu)).collect()
        } else {
            vec![None]
        };
        self.places.clear();
        let mut places = Vec::new();
        for cpu in cpus {
            let path = Path { cpu: cpu.map(|cpu| cpu.0).or(path.cpu), ..path.clone() };
            let located = reader.locate(map, &path, follow).map_err(|error| chain(&error))?;
            let found = Found { map_at: map.at, map_id: map.id, at: located.at, place: located.place };
            if found.value(reader).is_none() {
                return Err(format!("`{}` is no number", found.place.ty.name()));
            }
            places.push(found);
        }
        // Those of some CPUs are not the figure of all.
        self.places = places;
        Ok(())
    }
}

impl Found {
    /// The number, if its map is still there.
    fn value(&self, reader: &Reader<'_>) -> Option<f64> {
        if reader.map(self.map_at).ok()?.id != self.map_id {
            return None;
        }
        let ty = self.place.ty.strip()?;
        let (size, signed) = match ty.set.ty(ty.id)? {
            Ty::Int { size, kind } => (*size, *kind == IntKind::Signed),
            Ty::Enum(values) => (values.size, values.signed),
            _ => return None,
        };
        if size == 0 || size > 8 || self.place.bits.is_some() {
            return None;
        }
        let bytes = reader.bytes(self.at, size, "a watched value").ok()?;
        let mut word = [0; 8];
        word.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let unused = 64 - 8 * size as u32;
        let raw = u64::from_le_bytes(word);
        Some(if signed { ((raw << unused).cast_signed() >> unused) as f64 } else { raw as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_what_was_asked_for() {
        let mut sums = Sums::default();
        assert!(sums.metrics("m", Aggregate::Scalar).is_empty(), "nothing is not 0");
        sums.add(&[2.0, 6.0]);
        sums.add(&[4.0, 8.0]);
        let of = |aggregate| {
            let metrics = sums.metrics("m", aggregate).into_iter();
            metrics.map(|metric| (metric.name, metric.value)).collect::<Vec<_>>()
        };
        assert_eq!(of(Aggregate::PerCpu), [("m_avg".into(), 5.0), ("m_max".into(), 8.0)]);
        assert_eq!(of(Aggregate::PerCpuCounter), [("m".into(), 12.0)]);
        assert_eq!(of(Aggregate::Scalar), [("m".into(), 5.0)]);
        let mut below = Sums::default();
        below.add(&[-3.0]);
        assert_eq!(below.max, -3.0);
    }

    #[test]
    fn a_path_that_cannot_be_read_is_said_to_be_missing() {
        let wanted = MapWatch {
            map: ".bss".into(),
            path: "a[".into(),
            aggregate: Aggregate::Scalar,
            label: "a".into(),
        };
        let (metrics, missing) = MapWatches::new(&[wanted]).summary();
        assert!(metrics.is_empty());
        assert!(missing[0].starts_with("a[ in .bss was not watched: "), "{missing:?}");
    }
}
