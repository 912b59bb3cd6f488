import { createHash } from 'node:crypto';
import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError, messageOf } from '@mizzen/common';
import { parseYaml } from '@mizzen/common/bounded-yaml';
import { packAny } from '@mizzen/envoy-api';
import { ValidationPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { OpenApiDocument } from '@mizzen/gateway';

/**
 * The configuration of the validation filter for an OpenAPI document. Every snapshot asks for it, and a large document takes a second to parse and
 * verify: the result, also a refusal, is kept by the digest of the text.
 */
export interface ValidationSettings {
  /** undefined: the path of the document's first server. */
  readonly basePath: string | undefined;
  readonly maxBodyBytes: number;
  readonly allowsUnknown: boolean;
}

const maxYamlBytes = 10 * 1024 * 1024;
const maxKept = 64;
const kept = new Map<string, Any | MizzenError>();

/** Throws MizzenError with the place in the document that cannot be used. */
export function validationConfig(source: string, settings: ValidationSettings, place: string): Any {
  const key = createHash('sha256').update(JSON.stringify(settings)).update(source).digest('base64');
  let config = kept.get(key);
  if (config === undefined) {
    config = build(source, settings, place);
    const [oldest] = kept.keys();
    if (kept.size >= maxKept && oldest !== undefined) kept.delete(oldest);
  } else kept.delete(key);
  // The latest are the last.
  kept.set(key, config);
  if (config instanceof MizzenError) throw config;
  return config;
}

function build(source: string, { basePath: given, ...settings }: ValidationSettings, place: string): Any | MizzenError {
  try {
    const openapi = jsonOf(source, place);
    const basePath = given ?? basePathOf(openapi);
    OpenApiDocument.compile(openapi, basePath, place).verify();
    return packAny(ValidationPerRouteSchema, { openapi, basePath, ...settings });
  } catch (error) {
    return error instanceof MizzenError ? error : new MizzenError('invalid-openapi', `${place}: ${messageOf(error)}`);
  }
}

function jsonOf(source: string, place: string): string {
  try {
    return JSON.stringify(source.trimStart().startsWith('{') ? JSON.parse(source) : parseYaml(source, maxYamlBytes));
  } catch (error) {
    throw new MizzenError('invalid-openapi', `${place}: the document is neither JSON nor YAML: ${messageOf(error).split('\n')[0]}`);
  }
}

/** OpenAPI, Server Object: the path of the first one stands before all paths. */
function basePathOf(openapi: string): string {
  const document = JSON.parse(openapi) as { readonly servers?: readonly { readonly url?: unknown }[] } | null;
  try {
    return new URL(String(document?.servers?.[0]?.url ?? ''), 'http://api.invalid').pathname.replace(/\/$/, '');
  } catch {
    return '';
  }
}
