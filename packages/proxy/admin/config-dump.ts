import { createRegistry, toJson } from '@bufbuild/protobuf';
import { type Any, AnySchema } from '@bufbuild/protobuf/wkt';
import { messageOf } from '@mizzen/common';
import { resourceTypes } from '@mizzen/envoy-api';
import { knownMessages } from '@mizzen/envoy-api/known-messages';
import { redacted } from '@mizzen/envoy-api/redact';
import type { ResourceState } from '../xds/resource-state.ts';

const registry = createRegistry(...knownMessages);

/** The configuration in effect as JSON, by type; secrets are not part of it. */
export function configDump(state: ResourceState, versions: Readonly<Record<string, string>>): unknown {
  const configs: Record<string, unknown> = {};
  for (const type of resourceTypes) {
    if (type === 'secret') continue;
    configs[`${type}s`] = { version_info: versions[type] ?? '', resources: state.dump(type).map(describe) };
  }
  return { configs };
}

/** A resource with a part of a type that is not known here is named: packed, it could hold what nobody may see. */
function describe(any: Any): unknown {
  try {
    return toJson(AnySchema, redacted(AnySchema, any, registry) as Any, { registry, useProtoFieldName: true });
  } catch (error) {
    return { '@type': any.typeUrl, bytes: any.value.length, not_shown_because: messageOf(error) };
  }
}
