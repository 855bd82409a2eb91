/** Narinfos of strangers: what is read of them, and that nothing they say does more than be refused. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { compressionOfFile } from '../../../agent/nix/compression.ts'
import { formatNarinfo } from '../../../agent/nix/narinfo.ts'
import { parseNarinfo } from '../../../agent/nix/narinfo-read.ts'
import { encodeNix32 } from '../../../agent/nix/nix32.ts'

const store = '/nix/store'
const good = `StorePath: ${store}/${'a'.repeat(32)}-hello-2.12
URL: nar/0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa.nar.xz
Compression: xz
FileHash: sha256:0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa
FileSize: 100
NarHash: sha256:0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa
NarSize: 120
References: ${'b'.repeat(32)}-glibc ${'a'.repeat(32)}-hello-2.12
Deriver: ${'d'.repeat(32)}-hello-2.12.drv
Later: what a later version says
Sig: cache-1:${Buffer.alloc(64).toString('base64')}
`
const digest = 'ea5ae6fe88ada6676107527b2680dc20437ee0ff5a7c276db270c7e465153b50'

describe('a narinfo', () => {
  it('is read as Nix reads it', () => {
    expect(parseNarinfo(good, store)).toEqual({
      path: `${store}/${'a'.repeat(32)}-hello-2.12`,
      narHash: digest,
      narSize: 120,
      references: [`${store}/${'a'.repeat(32)}-hello-2.12`, `${store}/${'b'.repeat(32)}-glibc`],
      deriver: `${store}/${'d'.repeat(32)}-hello-2.12.drv`,
      signatures: [`cache-1:${Buffer.alloc(64).toString('base64')}`],
      ca: undefined,
      url: 'nar/0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa.nar.xz',
      compression: 'xz',
    })
    const sri = `sha256-${Buffer.from(digest, 'hex').toString('base64')}`
    for (const hash of [`sha256:${digest}`, sri]) {
      expect(parseNarinfo(good.replace(/^NarHash: .*$/m, `NarHash: ${hash}`), store).narHash).toBe(digest)
    }
    expect(parseNarinfo(good.replace(/^References: .*$/m, 'References: '), store).references).toEqual([])
  })

  it.each([
    ['another store', good.replace('/nix/store/', '/gnu/store/')],
    ['a path that leads out', good.replace('-hello-2.12\n', '-../../etc\n')],
    ['no name', good.replace(/^StorePath: .*$/m, `StorePath: ${store}/${'a'.repeat(32)}`)],
    ['a reference that is a path', good.replace('References: ', 'References: /etc/passwd ')],
    ['two hashes', `${good}NarHash: sha256:${digest}\n`],
    ['another hash', good.replace('NarHash: sha256:', 'NarHash: sha512:')],
    ['a hash that is short', good.replace(/^NarHash: .*$/m, 'NarHash: sha256:00')],
    ['no size', good.replace('NarSize: 120', 'NarSize: 0')],
    ['a size that is none', good.replace('NarSize: 120', 'NarSize: 1e9')],
    ['a size beyond all', good.replace('NarSize: 120', 'NarSize: 999999999999999')],
    ['no URL', good.replace(/^URL: .*\n/m, '')],
    ['a URL with spaces', good.replace('URL: nar', 'URL: a nar')],
    ['no end', good.slice(0, -1)],
    ['a line that is none', `${good}nonsense\n`],
    ['nothing', ''],
    ['HTML', '<html>\n<body>Log in first</body>\n</html>\n'],
  ])('is refused with %s', (_what, text) => {
    expect(() => parseNarinfo(text, store)).toThrow(/narinfo/)
  })

  it('is refused for a compression that is not read here, in words', () => {
    for (const change of [
      (text: string) => text.replace('Compression: xz', 'Compression: bzip2'),
      (text: string) => text.replace(/^Compression: .*\n/m, ''),
    ])
      expect(() => parseNarinfo(change(good), store)).toThrow(/"bzip2", which this agent does not read/)
  })

  it('comes back as it was written', () => {
    const base = fc
      .tuple(fc.uint8Array({ minLength: 20, maxLength: 20 }), fc.stringMatching(/^[0-9a-zA-Z+\-._?=]{1,40}$/))
      .map(([hash, name]) => `${store}/${encodeNix32(hash)}-${name}`)
    const signature = fc
      .tuple(fc.stringMatching(/^[a-z][a-z0-9.-]{0,20}$/), fc.uint8Array({ minLength: 64, maxLength: 64 }))
      .map(([name, bytes]) => `${name}:${Buffer.from(bytes).toString('base64')}`)
    fc.assert(
      fc.property(
        fc.record({
          path: base,
          narHash: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes).toString('hex')),
          narSize: fc.integer({ min: 1, max: 2 ** 31 }),
          references: fc.uniqueArray(base, { maxLength: 8 }).map((all) => all.sort()),
          signatures: fc.uniqueArray(signature, { maxLength: 8 }),
        }),
        (info) => {
          expect(parseNarinfo(formatNarinfo(info), store)).toMatchObject(info)
        },
      ),
    )
  })

  it('says nothing that is not checked, whatever bytes it is made of', () => {
    const line = fc.tuple(
      fc.constantFrom(
        'StorePath',
        'URL',
        'Compression',
        'NarHash',
        'NarSize',
        'References',
        'Deriver',
        'Sig',
        'CA',
        'x',
      ),
      fc.oneof(fc.string(), fc.constantFrom('none', 'xz', '1', '-1', `${store}/x`, `sha256:${digest}`)),
    )
    const changed = fc
      .tuple(fc.nat({ max: good.length }), fc.nat({ max: 40 }), fc.string({ unit: 'binary' }))
      .map(([at, length, text]) => `${good.slice(0, at)}${text}${good.slice(at + length)}`)
    const text = fc.oneof(
      fc.string({ unit: 'binary' }),
      changed,
      fc.array(line).map((lines) => lines.map(([name, value]) => `${name}: ${value}\n`).join('')),
    )
    fc.assert(
      fc.property(text, (said) => {
        try {
          const { path, references, deriver, narSize, url } = parseNarinfo(said, store)
          for (const one of [path, ...references, ...(deriver === undefined ? [] : [deriver])])
            expect(one).toMatch(/^\/nix\/store\/[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+\-._?=]{1,211}$/)
          expect(narSize).toBeGreaterThan(0)
          expect(url).toMatch(/^[!-~]+$/)
        } catch (error) {
          expect(error).toHaveProperty('name', 'AgentError')
        }
      }),
      { numRuns: 2_000 },
    )
  })
})

it('knows a compression by the name of a file', () => {
  expect(compressionOfFile('x.nar.zst')).toEqual({ stem: 'x', compression: 'zstd' })
  expect(compressionOfFile('x.nar')).toEqual({ stem: 'x', compression: 'none' })
  expect(compressionOfFile('x.nar.bz2')).toBeUndefined()
})
