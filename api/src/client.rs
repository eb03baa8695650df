//! One client for all three APIs. (Written by the runner's author; see the brief.)
