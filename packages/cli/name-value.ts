import { MizzenError } from '@mizzen/common';

/** What a repeated option NAME=VALUE says, `option` being how the user wrote it. */
export function nameValues(texts: readonly string[], option: string): Record<string, string> {
  return Object.fromEntries(
    texts.map((text) => {
      const at = text.indexOf('=');
      if (at < 1) throw new MizzenError('bad-option', `${option} ${text} is not understood: write NAME=VALUE`);
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
}
