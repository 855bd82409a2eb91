/** Warnings about room: silent when there is some, and otherwise saying what to do. */
import { expect, it } from 'vitest'
import { type RoomCondition, roomWarnings } from '../../../agent/node/room-warnings.ts'
import { pin } from '../api/fake-room.ts'

const GIB = 2 ** 30
const well: RoomCondition = {
  unkept: { count: 0, lastMs: undefined },
  quotaBytes: 20 * GIB,
  keptBytes: 5 * GIB,
  pins: [pin],
  now: 10_000_000,
}
const warnings = (condition: Partial<RoomCondition>) => roomWarnings({ ...well, ...condition })

it('there are none while there is room', () => {
  expect(warnings({})).toEqual([])
  expect(warnings({ unkept: { count: 3, lastMs: well.now - 2 * 60 * 60_000 } })).toEqual([])
})

it('tell of a quota that is full of what must stay', () => {
  expect(warnings({ keptBytes: 19.5 * GIB })).toEqual([
    {
      code: 'content.full',
      message:
        'there is hardly any room for what is fetched: of the quota of 20.0 GiB, 19.5 GiB is published or pinned',
      next: expect.stringMatching(/Raise `quota`.*agent unpin/) as string,
    },
  ])
})

it('tell of what was handed to Nix without being kept, for an hour', () => {
  const [warning] = warnings({ unkept: { count: 2, lastMs: well.now - 1_000 } })
  expect(warning?.message).toContain('2 blobs were handed on without keeping them')
  expect(warning?.next).toContain('agent gc --all')
  const [full] = warnings({ unkept: { count: 1, lastMs: well.now }, keptBytes: 20 * GIB })
  expect(full).toMatchObject({
    message: expect.stringContaining('1 blob was handed on without keeping it') as string,
    next: expect.stringContaining('Raise `quota`') as string,
  })
})

it('tell of pins of which a part is gone', () => {
  expect(warnings({ pins: [pin, { ...pin, name: 'site', missing: 2, parts: 3 }] })).toMatchObject([
    {
      code: 'pins.incomplete',
      message: expect.stringContaining('site (2 of 3)') as string,
      next: '`agent pin site` fetches them again.',
    },
  ])
})
