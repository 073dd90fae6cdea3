//! Owns the homes that can be offered: an index built from the search results of the dialogues themselves, and the
//! search in it. Rule kept: the order of results depends on the homes only, so that "show me another" walks
//! through the same list every time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    slots::{Gazetteer, Slots},
    text::Words,
};

/// One home on offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listing {
    pub name: String,
    pub address: String,
    pub area: String,
    pub beds: Option<u32>,
    pub baths: Option<u32>,
    /// Dollars per month, or the asking price where the result names one.
    pub rent: Option<u32>,
    pub pets: Option<bool>,
    pub furnished: Option<bool>,
    pub phone: Option<String>,
}

impl Listing {
    /// Reads a search result; nothing where it describes no home (a calendar entry, a restaurant).
    pub fn from_result(result: &BTreeMap<String, String>) -> Option<Self> {
        let get = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| result.get(*name))
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let count = |names: &[&str]| get(names).and_then(crate::text::number);
        let flag = |names: &[&str]| get(names).and_then(yes_or_no);
        let listing = Self {
            name: get(&["property_name", "name", "title"])?.to_owned(),
            address: get(&["address", "street_address"])?.to_owned(),
            area: get(&["area", "city", "location"]).unwrap_or_default().to_owned(),
            beds: count(&["number_of_beds", "beds", "bedrooms"]),
            baths: count(&["number_of_baths", "baths", "bathrooms"]),
            rent: count(&["rent", "price"]),
            pets: flag(&["pets_allowed", "pets"]),
            furnished: flag(&["furnished"]),
            phone: get(&["phone_number", "phone"]).map(str::to_owned),
        };
        listing.beds.is_some().then_some(listing)
    }

    fn meets(&self, wanted: &Slots) -> bool {
        let same = |wanted: Option<u32>, has: Option<u32>| wanted.is_none_or(|wanted| has == Some(wanted));
        wanted.area.as_ref().is_none_or(|area| self.area.eq_ignore_ascii_case(area))
            && same(wanted.beds, self.beds)
            && same(wanted.baths, self.baths)
            && wanted.price_max.is_none_or(|max| self.rent.is_some_and(|rent| rent <= max))
            && wanted.pets.is_none_or(|pets| !pets || self.pets == Some(true))
            && wanted.furnished.is_none_or(|furnished| !furnished || self.furnished == Some(true))
    }
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        _ => None,
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Found {
    /// How many homes meet the wishes.
    pub count: usize,
    /// The home to speak about.
    pub current: Option<Listing>,
    /// The wishes were loosened (baths, price, pets and furniture left out), because nothing meets all of them.
    pub loosened: bool,
}

/// All homes, sorted.
#[derive(Debug, Clone, Default)]
pub struct Index {
    listings: Vec<Listing>,
}

impl Index {
    /// Builds the index from search results; the same home found twice is kept once.
    pub fn from_results<'a>(results: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Self {
        let mut homes: BTreeMap<_, Listing> = BTreeMap::new();
        let mut towns: BTreeMap<(String, String), String> = BTreeMap::new();
        for listing in results.into_iter().filter_map(Listing::from_result) {
            let place = (listing.name.to_lowercase(), listing.address.to_lowercase());
            if !listing.area.is_empty() {
                towns.insert(place.clone(), listing.area.clone());
            }
            homes.entry((place, listing.beds, listing.baths)).or_insert(listing);
        }
        // A booked visit repeats the home without its town, which an earlier search named.
        for ((place, ..), listing) in &mut homes {
            if let Some(town) = towns.get(place).filter(|_| listing.area.is_empty()) {
                listing.area.clone_from(town);
            }
        }
        let mut listings: Vec<_> = homes.into_values().filter(|listing| !listing.area.is_empty()).collect();
        listings.sort_by(|a, b| {
            (a.rent, &a.name, &a.address, a.beds).cmp(&(b.rent, &b.name, &b.address, b.beds))
        });
        Self { listings }
    }

    /// Every home.
    pub fn all(&self) -> &[Listing] {
        &self.listings
    }

    /// The towns that the homes are in.
    pub fn gazetteer(&self) -> Gazetteer {
        Gazetteer::new(self.listings.iter().map(|listing| listing.area.as_str()))
    }

    /// Searches for homes that meet `wanted` and speaks about the one with the name, or the one after `passed` others.
    pub fn search(&self, wanted: &Slots, passed: usize, named: Option<&str>) -> Found {
        let strict: Vec<&Listing> = self.listings.iter().filter(|listing| listing.meets(wanted)).collect();
        if !strict.is_empty() {
            return found(&strict, passed, named, false);
        }
        let looser = Slots { area: wanted.area.clone(), beds: wanted.beds, ..Slots::default() };
        let loose: Vec<&Listing> = self.listings.iter().filter(|listing| listing.meets(&looser)).collect();
        found(&loose, passed, named, !loose.is_empty())
    }

    /// The home whose name the message holds, the longest name first.
    pub fn named_in(&self, words: &Words) -> Option<&Listing> {
        let named = self.listings.iter().filter(|listing| {
            let name = Words::of(&listing.name);
            !name.is_empty() && words.has(&name.as_slice().join(" "))
        });
        named.max_by_key(|listing| listing.name.len())
    }
}

fn found(homes: &[&Listing], passed: usize, named: Option<&str>, loosened: bool) -> Found {
    let named = named.and_then(|name| homes.iter().find(|home| home.name == name));
    let next = || homes.get(passed % homes.len().max(1));
    let current = named.or_else(next).map(|home| (*home).clone());
    Found { count: homes.len(), current, loosened }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(fields: &[(&str, &str)]) -> BTreeMap<String, String> {
        fields.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
    }

    fn home(name: &str, area: &str, beds: &str, rent: &str) -> BTreeMap<String, String> {
        result(&[
            ("property_name", name),
            ("address", "1 Elm Street"),
            ("area", area),
            ("number_of_beds", beds),
            ("rent", rent),
            ("pets_allowed", "True"),
        ])
    }

    #[test]
    fn homes_are_kept_once_and_sorted_by_rent() {
        let results =
            [home("B", "Napa", "2", "3,000"), home("A", "Napa", "2", "2500"), home("B", "Napa", "2", "3000")];
        let index = Index::from_results(&results);
        let names: Vec<_> = index.all().iter().map(|listing| (listing.name.as_str(), listing.rent)).collect();
        assert_eq!(names, [("A", Some(2_500)), ("B", Some(3_000))]);
    }

    #[test]
    fn what_is_no_home_is_left_out_and_a_town_is_taken_from_another_result() {
        let mut visit = home("A", "Napa", "3", "2500");
        visit.remove("area");
        let results = [
            result(&[("restaurant_name", "Bistro"), ("city", "Napa")]),
            result(&[("event_name", "visit")]),
            visit,
            home("A", "Napa", "2", "2000"),
        ];
        let index = Index::from_results(&results);
        assert_eq!(
            index.all().iter().map(|listing| listing.area.as_str()).collect::<Vec<_>>(),
            ["Napa", "Napa"]
        );
    }

    #[test]
    fn a_search_walks_through_what_meets_the_wishes() {
        let results =
            [home("A", "Napa", "2", "2500"), home("B", "Napa", "2", "3000"), home("C", "Davis", "2", "900")];
        let index = Index::from_results(&results);
        let wanted = Slots { area: Some("napa".to_owned()), beds: Some(2), ..Slots::default() };
        let names: Vec<_> =
            (0..3).map(|passed| index.search(&wanted, passed, None).current.map(|home| home.name)).collect();
        assert_eq!(names, [Some("A".to_owned()), Some("B".to_owned()), Some("A".to_owned())]);
        assert_eq!(index.search(&wanted, 0, Some("B")).current.map(|home| home.name).as_deref(), Some("B"));
    }

    #[test]
    fn wishes_that_nothing_meets_are_loosened_and_that_is_said() {
        let index = Index::from_results(&[home("A", "Napa", "2", "2500")]);
        let wanted = Slots { area: Some("Napa".to_owned()), price_max: Some(100), ..Slots::default() };
        let found = index.search(&wanted, 0, None);
        assert!(found.loosened && found.count == 1);
        let elsewhere = Slots { area: Some("Paris".to_owned()), ..Slots::default() };
        assert_eq!(index.search(&elsewhere, 0, None), Found::default());
    }

    #[test]
    fn a_home_is_recognised_by_its_name() {
        let index =
            Index::from_results(&[home("Elm Court", "Napa", "2", "1"), home("Elm", "Napa", "2", "1")]);
        let named = index.named_in(&Words::of("One is the Elm Court on 1 Elm Street."));
        assert_eq!(named.map(|listing| listing.name.as_str()), Some("Elm Court"));
    }
}
