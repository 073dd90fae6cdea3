//! A slab: values under dense reusable numbers.

/// Values under dense reusable numbers.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, item: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.items[at] = Some(item);
                at
            }
            None => {
                self.items.push(Some(item));
                self.items.len() - 1
            }
        }
    }

    /// Puts a value under a number that its owner chose; the slab's own numbers are not used beside it.
    pub(crate) fn put(&mut self, at: usize, item: T) {
        if self.items.len() <= at {
            self.items.resize_with(at + 1, || None);
        }
        self.items[at] = Some(item);
    }

    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        self.items.get(at).and_then(Option::as_ref)
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.items.get_mut(at).and_then(Option::as_mut)
    }

    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        let item = self.items.get_mut(at)?.take();
        if item.is_some() {
            self.free.push(at);
        }
        item
    }

    /// Removes a value that was `put`.
    pub(crate) fn clear(&mut self, at: usize) -> Option<T> {
        self.items.get_mut(at)?.take()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.iter().flatten().count()
    }
}
