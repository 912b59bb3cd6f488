/** Fields in their order, as trailers and HTTP/2 carry them: names in lower case, text in latin1. */
export type Fields = readonly (readonly [name: string, value: string])[];

export const noFields: Fields = [];
