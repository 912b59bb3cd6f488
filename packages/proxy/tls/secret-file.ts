import { createRequire } from 'node:module';
import { createRegistry, fromJson, type JsonValue } from '@bufbuild/protobuf';
import { AnySchema } from '@bufbuild/protobuf/wkt';
import { MizzenError, messageOf } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';
import {
  file_envoy_extensions_transport_sockets_tls_v3_secret,
  type Secret,
  SecretSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';

/** Loaded by the few who keep secrets in YAML. */
const require = createRequire(import.meta.url);

/** The secrets in a file of SDS: a DiscoveryResponse with Secret resources, as JSON or YAML (Envoy docs, "SDS", "static files"). */
export function readSecretFile(text: string, path: string): Secret[] {
  const registry = createRegistry(file_envoy_extensions_transport_sockets_tls_v3_secret);
  try {
    const { parse } = require('yaml') as typeof import('yaml');
    const { resources } = parse(text, { maxAliasCount: 0 }) as { resources?: readonly JsonValue[] };
    if (!Array.isArray(resources)) throw new Error('"resources" is missing');
    return resources.map((resource) => unpackAny(SecretSchema, fromJson(AnySchema, resource, { registry }))).filter((secret) => secret !== undefined);
  } catch (error) {
    throw new MizzenError('invalid-secret', `the file is no list of secrets: ${messageOf(error)}`, path);
  }
}
