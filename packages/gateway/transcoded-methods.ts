import { createFileRegistry, type DescField, type DescMessage, type DescMethod, type FileRegistry, fromBinary, getOption, hasOption } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { MizzenError, messageOf } from '@mizzen/common';
import { http as httpOption } from '@mizzen/envoy-api/gen/google/api/annotations_pb.js';
import type { HttpRule } from '@mizzen/envoy-api/gen/google/api/http_pb.js';
import { compilePathTemplate, type PathTemplate } from './path-template.ts';

/** One way to call a method by HTTP. */
export interface Binding {
  readonly httpMethod: string;
  readonly template: PathTemplate;
  /** '': the request has no body; `*`: it is the whole message; else the field that it is. */
  readonly body: string;
  readonly responseBody: string;
  readonly method: DescMethod;
}

export interface TranscodedMethods {
  readonly bindings: readonly Binding[];
  readonly registry: FileRegistry;
}

/** Reads a descriptor set (`protoc --include_imports --descriptor_set_out`). Throws MizzenError with what does not fit. */
export function readTranscodedMethods(descriptorSet: Uint8Array, services: readonly string[], place: string): TranscodedMethods {
  let registry: FileRegistry;
  try {
    registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptorSet));
  } catch (error) {
    throw new MizzenError('invalid-descriptor', `${place}: the descriptor set cannot be used (was it made with --include_imports?): ${messageOf(error)}`);
  }
  const bindings: Binding[] = [];
  const known: string[] = [];
  for (const file of registry.files) known.push(...file.services.map(({ typeName }) => typeName));
  for (const name of services) {
    const service = registry.getService(name);
    if (service === undefined)
      throw new MizzenError('invalid-descriptor', `${place}: the descriptor set has no service ${name}. It has: ${known.join(', ') || 'none'}`);
    for (const method of service.methods) {
      if (!hasOption(method, httpOption)) continue;
      if (method.methodKind !== 'unary')
        throw new MizzenError(
          'invalid-descriptor',
          `${place}: ${name}.${method.name} streams; only unary methods can be called by JSON so far. Take its google.api.http annotation away, or call it by gRPC.`,
        );
      const rule = getOption(method, httpOption);
      for (const one of [rule, ...rule.additionalBindings]) bindings.push(bindingOf(one, method, `${place}: ${name}.${method.name}`));
    }
  }
  if (bindings.length === 0)
    throw new MizzenError('invalid-descriptor', `${place}: none of ${services.join(', ')} has a method with a google.api.http annotation`);
  return { bindings, registry };
}

function bindingOf(rule: HttpRule, method: DescMethod, place: string): Binding {
  const { pattern, body, responseBody } = rule;
  if (pattern.case === undefined) throw new MizzenError('invalid-descriptor', `${place}: its google.api.http annotation names no path`);
  const [httpMethod, path] = pattern.case === 'custom' ? [pattern.value.kind, pattern.value.path] : [pattern.case.toUpperCase(), pattern.value];
  try {
    const template = compilePathTemplate(path);
    for (const field of template.fields) fieldAt(method.input, field);
    if (body !== '' && body !== '*') fieldAt(method.input, body);
    if (responseBody !== '') fieldAt(method.output, responseBody);
    return { httpMethod, template, body, responseBody, method };
  } catch (error) {
    throw new MizzenError('invalid-descriptor', `${place}: ${messageOf(error)}`);
  }
}

/** The field at a dotted path of names, as they stand in the .proto file or in JSON. Throws Error where there is none. */
export function fieldAt(message: DescMessage, path: string): DescField {
  let current: DescMessage | undefined = message;
  let field: DescField | undefined;
  for (const part of path.split('.')) {
    field = current?.fields.find((candidate) => candidate.name === part || candidate.jsonName === part);
    if (field === undefined) throw new Error(`${message.typeName} has no field ${path}`);
    current = field.fieldKind === 'message' ? field.message : undefined;
  }
  return field!;
}
