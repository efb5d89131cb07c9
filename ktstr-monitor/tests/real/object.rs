//! The same analysis over the object inside an executable, without any kernel.

use ktstr_monitor::cast::{self, object};
use ktstr_monitor::types::Ty;

use crate::facts;
use crate::guest::executable;

/// All that is found in the object of `scx-ktstr --plant` is true.
#[test]
fn casts_of_the_object_are_true() {
    let bytes = std::fs::read(executable("scx-ktstr")).expect("the executable");
    let codes: Vec<_> =
        object::embedded(&bytes).into_iter().filter_map(|elf| object::parse("scx-ktstr", elf).ok()).collect();
    let plant = codes.iter().find(|code| code.types.composite("plant_casts").is_some());
    let plant = plant.expect("the planting object is in the executable");
    let found = casts(plant, &ours);
    println!("{found:?}");
    let all: Vec<_> = facts::CASTS.iter().chain(facts::MISSED).collect();
    for (owner, member, to) in &found {
        assert!(all.contains(&&(owner.as_str(), member.as_str(), to.as_str())), "{owner}.{member} -> {to}");
    }
    assert!(found.len() >= facts::CASTS.len() - 1, "{} of {}", found.len(), all.len());
    // The scheduler proper keeps no pointers.
    let main = codes.iter().find(|code| code.types.composite("ktstr_exit_record").is_some());
    assert_eq!(casts(main.expect("the scheduler's object"), &ours), Vec::new());
}

/// Published schedulers named in `KTSTR_PUBLISHED` (paths, separated by colons): what is found is
/// printed for people to judge; that it ends is what is tested.
#[test]
fn published_schedulers_are_analysed() {
    for path in
        std::env::var("KTSTR_PUBLISHED").unwrap_or_default().split(':').filter(|path| !path.is_empty())
    {
        let bytes = std::fs::read(path).expect("the executable");
        let elves = object::embedded(&bytes);
        println!("{path}: {} objects", elves.len());
        for elf in elves {
            match object::parse(path, elf) {
                Ok(code) => {
                    println!("{} instructions, {} functions", code.insns.len(), code.functions.len());
                    for (owner, member, to) in casts(&code, &ours) {
                        println!("  {owner}.{member} -> {to}");
                    }
                }
                Err(error) => println!("  {error}"),
            }
        }
    }
}

/// Of the kernel's structures the planting object uses this one.
fn ours(name: &str) -> bool {
    name == "task_struct"
}

/// What is found: structure, member, and what it points at.
pub fn casts(code: &cast::code::Code, is_kernels: &dyn Fn(&str) -> bool) -> Vec<(String, String, String)> {
    let set = &code.types;
    let resolved = cast::resolve(set, std::slice::from_ref(code), is_kernels);
    let mut found: Vec<_> = resolved
        .iter()
        .map(|(slot, cast, _)| {
            let owner = set.get(slot.owner).expect("a type");
            let member = match &owner.ty {
                Ty::Composite(composite) => {
                    composite.members.iter().find(|m| m.bit / 8 == slot.offset).map(|m| m.name.clone())
                }
                Ty::Section { vars, .. } => {
                    let var = vars.iter().find(|v| v.offset == slot.offset);
                    var.and_then(|var| set.get(var.var)).map(|var| var.name.clone())
                }
                _ => None,
            };
            let to = cast.to.set.get(cast.to.id).expect("a type").name.clone();
            (owner.name.clone(), member.unwrap_or_default(), to)
        })
        .collect();
    found.sort();
    found
}
