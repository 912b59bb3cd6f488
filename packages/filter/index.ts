/** What a filter of one's own is written with: `defineFilter`, and the types of what it is given. `@mizzen/filter/testing` tries one. */
export { defineFilter, type FilterDefinition } from './define-filter.ts';
export { FilterHeaders } from './filter-headers.ts';
export { type FilterRequest, type FilterResponse, LocalAnswer, respond } from './messages.ts';
