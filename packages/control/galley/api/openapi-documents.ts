import { ApiError } from '../api-error.ts';
import { openApiDocument, openApiIndex } from './openapi.ts';

/** The OpenAPI v3 documents of the API, as JSON, each made once. */
export class OpenApiDocuments {
  readonly #texts: Map<string, string>;

  constructor() {
    this.#texts = new Map();
  }

  /** `path`: below `/openapi/v3`. Throws ApiError 404. One path for each document: what is kept cannot grow with the paths that callers invent. */
  read(path: readonly string[]): string {
    const key = path.join('/');
    const [root, ...rest] = path;
    const isDocument = path.length === 0 || (root === 'api' && rest.length === 1) || (root === 'apis' && rest.length === 2);
    const known = isDocument ? this.#texts.get(key) : undefined;
    if (known !== undefined) return known;
    const [group = '', version = ''] = root === 'api' ? ['', ...rest] : rest;
    const document = !isDocument ? undefined : path.length === 0 ? openApiIndex() : openApiDocument(group, version);
    if (!document) throw new ApiError(404, 'NotFound', `there is no OpenAPI document ${key}`);
    const text = JSON.stringify(document);
    this.#texts.set(key, text);
    return text;
  }
}
