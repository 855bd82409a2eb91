/** What people see of the room that content takes: pins, what is here and why, and what was freed. */
import { describe, expect, it } from 'vitest'
import type { RoomApi } from '../../../agent/api/room-api.ts'
import type { ContentRequest, GcRequest } from '../../../agent/api/room-contract.ts'
import { contentTable } from '../../../agent/cli/content.ts'
import { gcScreen } from '../../../agent/cli/gc.ts'
import { pinTable } from '../../../agent/cli/pin.ts'
import { textWidth } from '../../../agent/cli/table.ts'
import { AgentError } from '../../../agent/error.ts'
import { serve } from '../api/fake-agent.ts'
import { contentItem, contentItems, contentList, fakeRoom, freedBlob, gcResult, pin } from '../api/fake-room.ts'
import { plain, run } from './capture.ts'

const pipe = { columns: undefined, style: (_style: unknown, text: string) => text }
const NOW = Date.parse('2026-01-04T00:00:00Z')

async function ask(words: string[], replaced: Partial<RoomApi> = {}, columns?: number) {
  await using agent = await serve({ room: fakeRoom(replaced) })
  return await run(words, { socket: agent.socket, ...(columns !== undefined && { columns }) })
}

describe('pins', () => {
  it('line up, with what of them is elsewhere or gone', () => {
    const pins = [
      { ...pin, inStore: 51 },
      { ...pin, name: 'site', type: 'folder' as const, sizeBytes: 4_096, parts: 2, missing: 1 },
      { ...pin, name: 'notes', type: 'file' as const, sizeBytes: 12, parts: 1 },
    ]
    expect(pinTable(pins, pipe, NOW).join('\n')).toBe(
      `
NAME   KIND       SIZE  PARTS  PINNED  HERE
hello  nix     219 MiB     53     3 d  51 in the store
site   folder  4.0 KiB      2     3 d  1 gone
notes  file       12 B      1     3 d  all
`.trim(),
    )
    const mixed = pinTable([pin, { ...pin, network: 'home' }], pipe, NOW)
    expect(mixed[0]).toContain('NETWORK')
    expect(mixed[2]).toContain('home')
  })

  it('are made, named, let go, and told of when there are none', async () => {
    const asked: unknown[] = []
    const made = await ask(['pin', 'hello', '--network', 'home'], {
      pin: async (ref, onProgress, _signal, network) => {
        asked.push([ref, network])
        onProgress(1, 2)
        return { ...pin, inStore: 2 }
      },
    })
    expect(asked).toEqual([['hello', 'home']])
    expect(made.out).toBe(`Pinned hello (nix, 51 paths, 219 MiB)\n  ${pin.cid}\n`)
    expect(made.err).toContain('2 parts of it in the Nix store')
    expect((await ask(['unpin', 'apple/hello'], { unpin: (ref) => ({ ...pin, name: ref }) })).out).toBe(
      'No longer pinned: apple/hello (nix, 51 paths, 219 MiB)\n',
    )
    expect((await ask(['pins'], { pins: () => ({ pins: [] }) })).out).toMatch(/^Nothing is pinned. .*agent pin <ref>/)
  })

  it('that fail say why, after as much progress as there was', async () => {
    const { status, err, out } = await ask(['pin', 'hello'], {
      pin: async (_ref, onProgress) => {
        onProgress(1, 2)
        throw new AgentError('limit', 'no room for 2 GiB', { next: 'Raise `quota`.' })
      },
    })
    expect({ status, err, out }).toEqual({
      status: 1,
      err: 'agent: no room for 2 GiB\n       Raise `quota`.\n',
      out: '',
    })
  })

  it('complete by name', async () => {
    expect((await ask(['complete-names', 'pinned'])).out).toBe('hello\n')
  })
})

describe('content', () => {
  it('lines up: what, why, since when, how often served', () => {
    const items = [
      ...contentItems,
      {
        ...contentItem,
        what: 'site',
        place: 'arriving' as const,
        reasons: [{ why: 'fetched' as const, network: 'open' }],
      },
      { ...contentItem, what: 'gone', place: 'nowhere' as const },
      {
        ...contentItem,
        what: 'path',
        place: 'store' as const,
        reasons: [{ why: 'published' as const, name: 'hi', network: 'home' }],
      },
    ]
    expect(contentTable(contentItems, pipe, NOW).join('\n')).toBe(
      `
WHAT                                                       SIZE  WHY                                SINCE        SERVED  LAST USE
/nix/store/0c0n4bqrmk2bmnmzsl2rg7a2hx3vc1dd-hello-2.12  4.8 MiB  pinned as hello, fetched for home    3 d  3×, 14.3 MiB       2 d
cdcdcdcdcdcdcdcd…                                       3.9 KiB  nothing needs it                       -             -         -
`.trim(),
    )
    const lines = contentTable(items, pipe, NOW)
    expect(lines[1]).toMatch(/hello-2\.12 +4\.8 MiB {2}pinned as hello, fetched for home +3 d {2}3×, 14\.3 MiB +2 d$/)
    expect(lines[2]).toMatch(/^cdcdcdcdcdcdcdcd… +3\.9 KiB {2}nothing needs it +- +- +-$/)
    expect(lines[3]).toMatch(/^site .* half fetched, fetched /)
    expect(lines[4]).toMatch(/^gone +gone /)
    expect(lines[5]).toMatch(/in the Nix store, published as hi in home/)
  })

  it('fits a terminal, and says how much there is', async () => {
    const { out, err } = await ask(['content'], { content: () => ({ ...contentList, truncated: true }) }, 80)
    const lines = plain(out).trimEnd().split('\n')
    for (const line of lines.slice(0, -1)) expect(textWidth(line)).toBeLessThanOrEqual(80)
    expect(lines.at(-1)).toBe(
      '2 blobs, 4.8 MiB of 20.0 GiB, 4.8 MiB published or pinned; 51 store paths shared from the Nix store',
    )
    expect(plain(err)).toContain('--limit 100 shows some of it')
  })

  it('is asked for as the flags say, and a wrong order is refused', async () => {
    const asked: ContentRequest[] = []
    const content: RoomApi['content'] = (request) => {
      asked.push(request)
      return contentList
    }
    await ask(['content', '/nix/store/x', '--sort', 'served', '-n', '3', '--network', 'home'], { content })
    await ask(['content'], { content })
    expect(asked).toEqual([
      { ref: '/nix/store/x', sort: 'served', limit: 3, network: 'home' },
      { sort: 'size', limit: 50 },
    ])
    expect(await ask(['content', '--sort', 'age'])).toMatchObject({ status: 2 })
  })

  it('prints nothing of what peers wrote that acts on a terminal', () => {
    const hostile = 'a\x1b[2J\r\nb'
    const reasons = [{ why: 'pinned' as const, name: hostile, network: hostile }]
    const lines = contentTable([{ ...contentItem, what: hostile, reasons }], pipe, NOW)
    expect(lines.join('')).not.toMatch(/\p{Cc}/u)
    expect(pinTable([{ ...pin, name: hostile }], pipe, NOW).join('')).not.toMatch(/\p{Cc}/u)
    expect(gcScreen({ ...gcResult, freed: [{ ...freedBlob, what: hostile }] }, pipe).join('')).not.toMatch(/\p{Cc}/u)
  })
})

describe('gc', () => {
  it('says what went and what is left, or would', () => {
    expect(gcScreen(gcResult, pipe).join('\n')).toBe(
      `
FREED                 SIZE
cdcdcdcdcdcdcdcd…  3.9 KiB

Freed 3.9 KiB in 1 blob; 4.8 MiB is left.
`.trim(),
    )
    const many = { ...gcResult, dryRun: true, blobs: 30, freed: Array.from({ length: 30 }, () => freedBlob) }
    const lines = gcScreen(many, pipe)
    expect(lines[0]).toMatch(/^WOULD GO/)
    expect(lines.at(-3)).toBe('and 10 more')
    expect(lines.at(-1)).toBe('Would free 3.9 KiB in 30 blobs; 4.8 MiB would be left.')
    expect(gcScreen({ ...gcResult, blobs: 0, freed: [] }, pipe)).toEqual(['Nothing to free; 4.8 MiB is here.'])
  })

  it('does as its flags say', async () => {
    const asked: GcRequest[] = []
    const gc: RoomApi['gc'] = (request) => {
      asked.push(request)
      return gcResult
    }
    for (const flags of [[], ['--dry-run'], ['--all']]) await ask(['gc', ...flags], { gc })
    expect(asked).toEqual([
      { all: false, dryRun: false },
      { all: false, dryRun: true },
      { all: true, dryRun: false },
    ])
  })
})
