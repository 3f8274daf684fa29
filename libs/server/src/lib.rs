//! What every server needs: borrowing and returning a right, the store, options
