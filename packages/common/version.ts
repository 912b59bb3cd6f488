/** The version of the whole program; every package carries the same one. */
export const version = '0.1.0';
