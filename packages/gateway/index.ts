/** How APIs are described: OpenAPI documents and google.api.http annotations, compiled. The control plane checks with it what proxies work with. */
export { type ContentCheck, OpenApiDocument, type Operation } from './openapi-document.ts';
export { queryValues, removeQueryParameter } from './query-string.ts';
export { type Binding, fieldAt, readTranscodedMethods, type TranscodedMethods } from './transcoded-methods.ts';
