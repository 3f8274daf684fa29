//! Terminals and job control (tcsetpgrp(3)).
