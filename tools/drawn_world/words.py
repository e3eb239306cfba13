"""The world's words in English and Chinese."""

from __future__ import annotations

SUBJECT_WORDS = {  # name: (English singular|synonyms, plural|..., Chinese noun|synonyms, measure word)
    "cat": ("cat|cat|kitten", "cats|cats|kittens", "猫|小猫|猫咪", "只"),
    "dog": ("dog|dog|puppy", "dogs|dogs|puppies", "狗|小狗", "只"),
    "rabbit": ("rabbit|rabbit|bunny", "rabbits|rabbits|bunnies", "兔子|小兔子|兔", "只"),
    "bear": ("bear", "bears", "熊|小熊", "只"),
    "mouse": ("mouse", "mice", "老鼠|小老鼠", "只"),
    "pig": ("pig|pig|piglet", "pigs|pigs|piglets", "猪|小猪", "只"),
    "frog": ("frog", "frogs", "青蛙", "只"),
    "fox": ("fox", "foxes", "狐狸", "只"),
    "lion": ("lion", "lions", "狮子", "只"),
    "elephant": ("elephant", "elephants", "大象|小象", "只|头"),
    "penguin": ("penguin", "penguins", "企鹅", "只"),
    "owl": ("owl", "owls", "猫头鹰", "只"),
    "bird": ("bird", "birds", "鸟|小鸟", "只"),
    "fish": ("fish", "fish", "鱼|小鱼", "条"),
    "turtle": ("turtle|turtle|tortoise", "turtles|turtles|tortoises", "乌龟|海龟", "只"),
    "octopus": ("octopus", "octopuses", "章鱼", "只"),
    "house": ("house|house|cottage", "houses|houses|cottages", "房子|屋子", "座|栋"),
    "tree": ("tree", "trees", "树|大树", "棵"),
    "car": ("car|car|automobile", "cars|cars|automobiles", "汽车|车|小汽车", "辆"),
    "boat": ("boat|boat|sailboat|ship", "boats|boats|sailboats|ships", "船|帆船", "艘|条"),
    "sun": ("sun", "suns", "太阳", "个"),
    "moon": ("moon", "moons", "月亮", "个"),
    "star": ("star", "stars", "星星", "颗"),
    "flower": ("flower", "flowers", "花|花朵", "朵"),
    "mushroom": ("mushroom", "mushrooms", "蘑菇", "个|朵"),
    "balloon": ("balloon", "balloons", "气球", "个"),
    "apple": ("apple", "apples", "苹果", "个"),
    "rocket": ("rocket|rocket|spaceship", "rockets|rockets|spaceships", "火箭", "枚|个"),
    "umbrella": ("umbrella", "umbrellas", "雨伞|伞", "把"),
    "cup": ("cup|cup|mug", "cups|cups|mugs", "杯子|茶杯", "个"),
    "cake": ("cake|cake|birthday cake", "cakes|cakes|birthday cakes", "蛋糕|生日蛋糕", "个"),
    "train": ("train|train|locomotive", "trains|trains|locomotives", "火车", "列"),
}

COLOUR_WORDS = {  # name: (English, Chinese; 的 follows)
    "red": ("red", "红色|红"),
    "orange": ("orange", "橙色|橘色"),
    "yellow": ("yellow", "黄色|黄"),
    "green": ("green", "绿色|绿"),
    "blue": ("blue", "蓝色|蓝"),
    "purple": ("purple", "紫色"),
    "pink": ("pink", "粉色|粉红色"),
    "brown": ("brown", "棕色|褐色"),
    "white": ("white", "白色|白"),
    "black": ("black", "黑色|黑"),
}

WORN_WORDS = {  # name: (English after "wearing", Chinese after 戴)
    "sunglasses": (
        "sunglasses|sunglasses|sunglasses|dark glasses|a pair of sunglasses|shades",
        "墨镜|墨镜|太阳镜|太阳眼镜",
    ),
    "hat": ("a hat|a hat|a top hat|a purple hat", "帽子|帽子|礼帽|高帽子"),
    "crown": ("a crown|a golden crown", "皇冠|王冠"),
    "headphones": ("headphones|headphones|a headset|earphones", "耳机"),
    "scarf": ("a scarf|a scarf|a red scarf|a striped scarf", "围巾"),
    "bow tie": ("a bow tie|a bow tie|a blue bow tie|a bow", "领结|蝴蝶结"),
}

PLACE_WORDS = {  # name: (English, Chinese after 在)
    "beach": ("on the beach|on a beach|at the beach|by the sea|at the seaside", "沙滩上|海滩上|海边"),
    "night": (
        "under the night sky|at night|in the night|under the stars|against a night sky",
        "夜空下|夜晚|夜里|星空下",
    ),
    "forest": ("in the forest|in a forest|in the woods", "森林里|森林中|树林里"),
    "city": ("in the city|in a city|on the street|in the town", "城市里|街上|城里|街道上"),
    "snow": ("in the snow|in the snow|in winter|on the snow", "雪地里|雪中|雪地上"),
    "desert": ("in the desert|in a desert", "沙漠里|沙漠中"),
    "meadow": ("in a meadow|on the grass|in the meadow|in a field|in the park", "草地上|草原上|公园里"),
    "mountains": ("in the mountains|in front of mountains|near the mountains", "山里|山前|山中"),
    "underwater": ("under water|underwater|under the sea|in the water", "水下|海底|水里|海里"),
}

PLAIN_WORDS = (
    "on a {c} background|on a plain {c} background|with a {c} background|against a {c} background|{c} background",
    "在{c}背景上|{c}背景|{c}的背景|背景是{c}的",
)

POSITION_WORDS = (  # in the middle, left, right
    ("in the middle|in the center|in the centre", "在中间|在中央"),
    ("on the left|to the left|on the left side", "在左边|在左侧"),
    ("on the right|to the right|on the right side", "在右边|在右侧"),
)

COUNT_WORDS = (("", "一|一|1"), ("two|two|2|a pair of", "两|两|二|2"), ("three|three|3", "三|三|3"))

OPENERS = (
    (
        "a picture of|an image of|a drawing of|a photo of|a painting of|an illustration of|draw|please draw|show me|paint|"
        "I would like|a cartoon of|a portrait of"
    ),
    "画|请画|一张图片，|一幅画，|给我画|图片：",
)
ADJECTIVES = (
    "cute|little|nice|beautiful|lovely|happy|funny|friendly|pretty|cool|sweet|adorable|big|small|young|old|smiling",
    "可爱的|漂亮的|美丽的|快乐的|好看的|小小的",
)
TAILS = (
    (
        "high quality|detailed|best quality|4k|masterpiece|highly detailed|sharp|photorealistic|digital art|simple|"
        "in the style of a children's book|looking at us|8k, HD|professional photo|soft light|studio lighting|sunny day"
    ),
    "高清|细节丰富|高质量|简单|可爱|好看|杰作",
)
"""Words that change nothing in the picture: people write them, so the model must bear them."""
