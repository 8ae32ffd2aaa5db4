//! A pod volume on the host: opened, checked to be the tmpfs we think it is, identified.
