//! A vector whose freed places are used again. Owns indices; knows nothing of what it keeps.
//!
//! The rule it keeps: the place freed last is used first, so that one history always gives the same indices.

/// Values under dense indices.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Stores a value; the result is its index until it is removed.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(ix) = self.free.pop() {
            self.places[ix as usize] = Some(value);
            return ix;
        }
        let ix = u32::try_from(self.places.len()).expect("fewer than 2^32 values are alive at once");
        self.places.push(Some(value));
        ix
    }

    /// Stores a value under a given index, for state that is rebuilt.
    pub(crate) fn insert_at(&mut self, ix: u32, value: T) {
        while self.places.len() <= ix as usize {
            self.free.push(u32::try_from(self.places.len()).expect("bounded by ix"));
            self.places.push(None);
        }
        assert!(self.places[ix as usize].is_none(), "a restored handle is in use");
        self.free.retain(|free| *free != ix);
        self.places[ix as usize] = Some(value);
    }

    pub(crate) fn remove(&mut self, ix: u32) -> T {
        let value = self.places[ix as usize].take().expect("an index is removed once");
        self.free.push(ix);
        value
    }

    pub(crate) fn at(&self, ix: u32) -> &T {
        self.places[ix as usize].as_ref().expect("the index is alive")
    }

    pub(crate) fn at_mut(&mut self, ix: u32) -> &mut T {
        self.places[ix as usize].as_mut().expect("the index is alive")
    }

    /// The values in the order of their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(ix, place)| Some((ix as u32, place.as_ref()?)))
    }
}
