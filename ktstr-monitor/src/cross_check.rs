//! Where the guest says that the kernel's symbols lie, against where they are read.
//!
//! What the guest says is compared and shown, and nothing else: no address of it is ever read.

use ktstr_proto::symbols::{COMPARED, SymbolDiffers, SymbolsCompared, SymbolsTold};

use crate::kernel::{LiveKernel, Profile};

/// Characters kept of why the guest could say nothing.
const MAX_REASON: usize = 200;

/// What was told, and what came of it.
#[derive(Debug, Default)]
pub struct CrossCheck {
    told: Option<SymbolsTold>,
    compared: Option<SymbolsCompared>,
}

impl CrossCheck {
    /// What the guest says counts the first time.
    pub fn hear(&mut self, told: SymbolsTold) {
        self.told.get_or_insert(told);
    }

    /// What came of it, once there is a kernel to compare with.
    pub fn compared(&self) -> Option<&SymbolsCompared> {
        self.compared.as_ref()
    }

    /// Compares what was told and not compared yet.
    pub fn look(&mut self, profile: &Profile, live: &LiveKernel) -> Option<&SymbolsCompared> {
        let told = self.told.as_ref().filter(|_| self.compared.is_none())?;
        Some(self.compared.insert(compare(told, profile, live)))
    }
}

/// Each symbol by itself.
pub fn compare(told: &SymbolsTold, profile: &Profile, live: &LiveKernel) -> SymbolsCompared {
    let mut compared = SymbolsCompared::default();
    let told = match told {
        Ok(told) => told,
        Err(why) => {
            compared.impossible = Some(why.chars().take(MAX_REASON).collect());
            return compared;
        }
    };
    for (symbol, guest) in COMPARED.into_iter().zip(told) {
        let monitor = profile.symbols().get(symbol).map(|link| live.at(link).0);
        match (*guest, monitor) {
            (Some(guest), Some(monitor)) if guest == monitor => compared.agree += 1,
            (Some(guest), monitor) => {
                compared.differ.push(SymbolDiffers { symbol: symbol.to_owned(), guest, monitor });
            }
            (None, Some(_)) => compared.untold.push(symbol.to_owned()),
            (None, None) => {}
        }
    }
    compared
}
