"""What the small world holds: things with a picture in every style, and kinds of stuff that code draws.

Masks of UNSEEN things are never trained on. Chosen by hand from the single things that all six styles picture; of
near-twins (a car and a taxi, a fox and a wolf) one was taken.
"""

import dataclasses

from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.vocabulary.class_names import ClassName


@dataclasses.dataclass(frozen=True)
class Thing:
    """`slug` is the picture's name in the emoji sets, `names` the word that is shown and its synonyms."""

    slug: str
    names: tuple[str, ...]
    seen: bool


# slug = name, synonym, ... ; without "=" the slug is the name.
_SEEN = """
elephant
tiger-face = tiger
panda = panda, panda bear
fox
frog
penguin
owl
octopus
crab
turtle = turtle, tortoise
snail
butterfly
honeybee = bee, honeybee
spider
spouting-whale = whale
tropical-fish = tropical fish, fish
rooster = rooster, cock
two-hump-camel = camel
pig-face = pig
unicorn
snake
crocodile = crocodile, alligator
sunflower
cactus
palm-tree = palm tree, palm
evergreen-tree = pine tree, fir tree
rose
mushroom = mushroom, toadstool
banana
strawberry
watermelon
grapes = grapes, bunch of grapes
red-apple = apple, red apple
lemon
carrot
eggplant = eggplant, aubergine
avocado
ear-of-corn = corn, ear of corn
pizza = pizza, slice of pizza
hamburger = hamburger, burger
french-fries = french fries, fries, chips
doughnut = doughnut, donut
birthday-cake = birthday cake, cake
ice-cream = ice cream
popcorn
croissant
cookie = cookie, biscuit
lollipop
beer-mug = beer, mug of beer
hot-beverage = coffee, cup of coffee
bicycle = bicycle, bike
automobile = car, automobile
bus
fire-engine = fire truck, fire engine
airplane = airplane, plane
rocket = rocket, spaceship
sailboat = sailboat, sailing boat
locomotive = steam train, locomotive
tractor
house
castle
tent
ferris-wheel = ferris wheel
umbrella-with-rain-drops = umbrella
alarm-clock = alarm clock, clock
key
hammer
scissors
light-bulb = light bulb, bulb
candle
television = television, tv
guitar
drum
balloon
wrapped-gift = gift, present
trophy = trophy, cup
crown
soccer-ball = soccer ball
basketball
high-heeled-shoe = high heels, high-heeled shoe
t-shirt = shirt, t-shirt
snowman
ghost
jack-o-lantern = pumpkin, jack-o-lantern
"""
_UNSEEN = """
lion
koala = koala, koala bear
rabbit-face = rabbit, bunny
dolphin
lady-beetle = ladybug, ladybird
duck
monkey-face = monkey
scorpion
cow-face = cow
blowfish = pufferfish, blowfish
maple-leaf = maple leaf
four-leaf-clover = clover, four-leaf clover
tulip
pineapple
cherries = cherries, cherry
tomato
pear
bell
hot-pepper = chili pepper, hot pepper
hot-dog = hot dog
taco
pancakes
cheese-wedge = cheese
wine-glass = wine glass, wine
helicopter
ambulance
kick-scooter = scooter, kick scooter
ship
shopping-cart = shopping cart, trolley
volcano
trumpet
headphone = headphones
magnifying-glass-tilted-left = magnifying glass
hourglass-done = hourglass
rainbow
jeans = jeans, trousers
sunglasses
american-football = football, rugby ball
gem-stone = diamond, gem
bomb
"""

# The style that pictures are never trained on comes last.
STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fluent-emoji", "emojione")
TRAINED_STYLES, HELD_OUT_STYLE = STYLES[:-1], STYLES[-1]

STUFF: tuple[tuple[str, ...], ...] = (
    ("sky", "blue sky"),
    ("grass", "lawn", "meadow"),
    ("water", "sea"),
    ("sand", "beach"),
    ("brick wall", "bricks"),
    ("wood", "wooden floor"),
    ("road", "street"),
    ("snow",),
    ("night sky", "starry sky"),
    ("tiles", "tiled floor"),
    ("pebbles", "stones"),
    ("lava",),
)


def _things(lines: str, seen: bool) -> tuple[Thing, ...]:
    parted = (line.partition(" = ") for line in lines.strip().splitlines())
    return tuple(Thing(slug, tuple((names or slug).split(", ")), seen) for slug, _, names in parted)


THINGS: tuple[Thing, ...] = _things(_SEEN, True) + _things(_UNSEEN, False)

# Class ids of the data sets: things from 1, stuff from 201, so that neither list moves the other when it grows.
_FIRST_STUFF = 201


def thing_id(index: int) -> int:
    """The category id of `THINGS[index]`."""
    return 1 + index


def stuff_id(index: int) -> int:
    """The category id of `STUFF[index]`."""
    return _FIRST_STUFF + index


def vocabulary(*, seen_only: bool = False) -> Vocabulary:
    """All classes, things first; or those that masks are trained on."""
    things = [
        ClassName(thing.names, True, thing_id(index))
        for index, thing in enumerate(THINGS)
        if thing.seen or not seen_only
    ]
    return Vocabulary((*things, *(ClassName(names, False, stuff_id(index)) for index, names in enumerate(STUFF))))
