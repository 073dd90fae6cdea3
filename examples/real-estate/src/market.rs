//! Owns what the listings say about prices: medians per town and size, and from them what a home may be worth.
//! Rule kept: whole dollars and the listings only; where they say nothing, nothing is said.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::listings::Index;

/// A home is worth about this many months of its rent (a gross rent multiplier of 18 years).
const WORTH_IN_MONTHS: u32 = 18 * 12;

/// An estimate from rents is given with this margin to both sides, in percent.
const MARGIN_PERCENT: u32 = 12;

/// Rents of one town and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rents {
    pub homes: u32,
    pub low: u32,
    pub median: u32,
    pub high: u32,
}

/// What a home may be worth, in dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worth {
    pub low: u32,
    pub high: u32,
}

/// Rents by lower-case town and number of bedrooms; without bedrooms for the town as a whole.
#[derive(Debug, Clone, Default)]
pub struct Market {
    rents: BTreeMap<(String, Option<u32>), Rents>,
}

impl Market {
    /// Counts the listings of `index`.
    pub fn of(index: &Index) -> Self {
        let mut groups: BTreeMap<(String, Option<u32>), Vec<u32>> = BTreeMap::new();
        for listing in index.all() {
            let Some(rent) = listing.rent else { continue };
            let town = listing.area.to_lowercase();
            groups.entry((town.clone(), None)).or_default().push(rent);
            if listing.beds.is_some() {
                groups.entry((town, listing.beds)).or_default().push(rent);
            }
        }
        Self { rents: groups.into_iter().map(|(key, rents)| (key, summary(rents))).collect() }
    }

    /// Rents of homes with `beds` bedrooms in `area`, or of all its homes where that size is unknown there.
    pub fn rents(&self, area: &str, beds: Option<u32>) -> Option<Rents> {
        let town = area.to_lowercase();
        let sized = beds.and_then(|beds| self.rents.get(&(town.clone(), Some(beds))));
        sized.or_else(|| self.rents.get(&(town, None))).copied()
    }

    /// What a home with `beds` bedrooms in `area` may be worth.
    pub fn worth(&self, area: &str, beds: Option<u32>) -> Option<Worth> {
        let middle = self.rents(area, beds)?.median.checked_mul(WORTH_IN_MONTHS)?;
        let margin = middle / 100 * MARGIN_PERCENT;
        let round = |dollars: u32| dollars / 1_000 * 1_000;
        Some(Worth { low: round(middle - margin), high: round(middle.checked_add(margin)?) })
    }

    /// How many towns are known.
    pub fn towns(&self) -> usize {
        self.rents.keys().filter(|(_, beds)| beds.is_none()).count()
    }
}

fn summary(mut rents: Vec<u32>) -> Rents {
    rents.sort_unstable();
    let homes = u32::try_from(rents.len()).unwrap_or(u32::MAX);
    let middle = rents.len() / 2;
    let median = if rents.len() % 2 == 1 { rents[middle] } else { rents[middle - 1].midpoint(rents[middle]) };
    Rents { homes, low: rents[0], median, high: rents[rents.len() - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market() -> Market {
        let results: Vec<BTreeMap<String, String>> =
            [("a", 2, 2_000), ("b", 2, 3_000), ("c", 2, 4_000), ("d", 1, 1_000)]
                .iter()
                .map(|(name, beds, rent)| {
                    BTreeMap::from([
                        ("property_name".to_owned(), (*name).to_owned()),
                        ("address".to_owned(), "1 Elm".to_owned()),
                        ("area".to_owned(), "Napa".to_owned()),
                        ("number_of_beds".to_owned(), beds.to_string()),
                        ("rent".to_owned(), rent.to_string()),
                    ])
                })
                .collect();
        Market::of(&Index::from_results(&results))
    }

    #[test]
    fn rents_are_counted_per_town_and_size() {
        let market = market();
        assert_eq!(
            market.rents("NAPA", Some(2)),
            Some(Rents { homes: 3, low: 2_000, median: 3_000, high: 4_000 })
        );
        assert_eq!(
            market.rents("napa", Some(9)),
            Some(Rents { homes: 4, low: 1_000, median: 2_500, high: 4_000 })
        );
        assert_eq!((market.rents("Davis", None), market.towns()), (None, 1));
    }

    #[test]
    fn a_home_is_worth_years_of_its_rent() {
        assert_eq!(market().worth("Napa", Some(2)), Some(Worth { low: 570_000, high: 725_000 }));
        assert_eq!(market().worth("Davis", Some(2)), None);
    }
}
