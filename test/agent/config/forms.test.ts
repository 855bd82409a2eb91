/** What is said of values holds: whatever the agent reads as text has the form that the reference and the NixOS module go by. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { KEYS } from '../../../agent/config/keys.ts'
import type { Form, Kind } from '../../../agent/config/values.ts'

/** Values that are right for some key, in all the ways that they can be written. */
const KNOWN = [
  ['nas', 'off', 'auto', '20GiB', ' 500 MB ', '1.5g', '1073741824', '10 MB/s', '10MiB/S', '5m', ' 2 D '],
  ['127.0.0.1:7478', 'localhost:1', '[::1]:65535', '127.77.0.0/16', '127.1.5.0/24', '*.drv', 'id_rsa?'],
  ['/ip4/0.0.0.0/tcp/7477', '/ip6/::/tcp/0', '/dns/node.example/tcp/7477', '/ip4/192.0.2.1/tcp/1/p2p/12D3KooWA6WK'],
  ['https://cache.example', 'HTTP://cache.example:80/x?network=home', 'https://registry.example?prefix=docker.io'],
  ['web=127.0.0.1:8080?check=http:/&label=a:b', 'db=5432', 'web.home=127.0.0.1:8000?sticky=yes', 'a=[::1]:9'],
  `cache-1:${Buffer.alloc(32, 7).toString('base64')}`,
].flat()
const piece = fc.oneof(
  fc.constantFrom(...KNOWN),
  fc.string({ maxLength: 4 }),
  fc.constantFrom(...Array.from('/:.?=&[]-_* \n0aZ%#')),
)
const written = fc.oneof(
  fc.constantFrom(...KNOWN),
  fc.array(piece, { maxLength: 3 }).map((pieces) => pieces.join('')),
  fc.tuple(fc.constantFrom(...KNOWN), fc.nat(), piece).map(([text, at, more]) => {
    const place = at % (text.length + 1)
    return text.slice(0, place) + more + text.slice(place + 1)
  }),
)

function has(form: Form, text: string): boolean {
  if (form.is === 'list') return has(form.of, text)
  return form.is !== 'text' || form.pattern.test(text)
}

function isRead(kind: Kind<unknown>, value: unknown): boolean {
  try {
    kind.read(value, '/')
    return true
  } catch {
    return false
  }
}

describe('the form of a value', () => {
  it.each([...KEYS])('of %s is that of all that is read', (_key, { kind }) => {
    fc.assert(
      fc.property(written, (text) => {
        const value = kind.form.is === 'list' ? [text] : text
        if (isRead(kind, value) && text !== '') expect(has(kind.form, text)).toBe(true)
      }),
      { numRuns: 300 },
    )
  })

  it('of each key has a value in the list above, so that this says something', () => {
    const never = [...KEYS].filter(
      ([, { kind }]) => kind.form.is === 'text' && !KNOWN.some((text) => isRead(kind, text)),
    )
    expect(never.map(([key]) => key)).toEqual([])
  })
})
