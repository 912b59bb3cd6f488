import { createHash } from 'node:crypto';
import { ValidationPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { type ContentCheck, OpenApiDocument } from '@mizzen/gateway';
import type { FilterKind } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';

const name = 'mizzen.filters.http.validation';
const defaultMaxBodyBytes = 1024 * 1024;

/** Configurations in use, by the digest of their message: route tables are compiled at each change of any route. */
const configurations = new Map<string, WeakRef<Validation>>();

interface Validation {
  readonly document: OpenApiDocument;
  readonly maxBodyBytes: number;
  readonly allowsUnknown: boolean;
}

/**
 * mizzen.filters.http.validation: lets through what an OpenAPI document (3.0 or 3.1) describes: paths, methods, parameters, media types, and
 * JSON bodies by their schema (JSON Schema 2020-12). The rest is answered with RFC 9457 problem details that point to the bad field.
 */
export const validation: FilterKind = {
  name,
  create: (_any, _place, { counters }) => ({
    name,
    onRequest(exchange) {
      const config = exchange.filterConfig(name) as Validation | undefined;
      if (config === undefined) return 'continue';
      const { head } = exchange;
      const refuse = (status: number, title: string, detail: string, reason: string, errors?: ContentCheck['errors'], allow?: string) => {
        counters.countRejection('validation', reason);
        exchange.replyProblem(
          status,
          { title, detail, ...(errors === undefined ? {} : { errors }) },
          `validation_${reason}`,
          allow === undefined ? [] : [['allow', allow]],
        );
        return 'stop' as const;
      };
      const found = config.document.find(head.method, head.target);
      if (found.kind === 'unknown-path') return config.allowsUnknown ? 'continue' : refuse(404, 'Not Found', 'this API has no such path', 'unknown_path');
      if (found.kind === 'unknown-method') {
        if (config.allowsUnknown || head.method === 'OPTIONS') return 'continue';
        return refuse(405, 'Method Not Allowed', `this path takes ${found.allowed.join(', ')}`, 'unknown_method', undefined, found.allowed.join(', '));
      }
      const { operation, pathParameters } = found;
      const wrong = operation.checkParameters(pathParameters, head.target, head.headers);
      if (wrong.length > 0) return refuse(400, 'Bad Request', 'a parameter is not what this API takes', 'bad_parameter', wrong);
      if (!head.hasBody) return operation.requiresBody ? refuse(400, 'Bad Request', 'this request needs a body', 'missing_body') : 'continue';
      // Which of two types the service would read the body by is anyone's guess (RFC 9110 section 8.3: the field is a singleton).
      if (head.headers.getAll('content-type').length > 1) return refuse(400, 'Bad Request', 'Content-Type may be given once', 'repeated_content_type');
      const check = operation.contentCheckFor(head.headers.get('content-type'));
      if (check === 'not-taken')
        return refuse(415, 'Unsupported Media Type', `this request takes ${operation.mediaTypes.join(', ') || 'no content'}`, 'media_type');
      // What is no JSON goes by its media type alone.
      if (check === 'not-checked') return 'continue';
      exchange.collectRequest(config.maxBodyBytes, (body) => {
        const { errors, detail } = check(body);
        if (errors.length === 0) exchange.resumeFilters();
        else refuse(400, 'Bad Request', detail, 'bad_body', errors);
      });
      return 'stop';
    },
  }),
  compileRoute(any, place): Validation {
    const digest = createHash('sha256').update(any.value).digest('base64');
    const known = configurations.get(digest)?.deref();
    if (known !== undefined) return known;
    const { openapi, basePath, maxBodyBytes, allowsUnknown } = unpackConfig(ValidationPerRouteSchema, any, place);
    const validation = { document: OpenApiDocument.compile(openapi, basePath, place), maxBodyBytes: maxBodyBytes || defaultMaxBodyBytes, allowsUnknown };
    for (const [key, reference] of configurations) if (reference.deref() === undefined) configurations.delete(key);
    configurations.set(digest, new WeakRef(validation));
    return validation;
  },
};
